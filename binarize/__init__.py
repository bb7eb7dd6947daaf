"""Binarize trained convolutional PyTorch networks."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from binarize.errors import BinarizeError

if TYPE_CHECKING:
    from binarize import nn, ops
    from binarize.budget.convert import convert, plan
    from binarize.calibration import calibrate
    from binarize.file.hub import from_pretrained, push_to_hub, save_pretrained
    from binarize.file.load import load
    from binarize.file.save import save
    from binarize.graph.plan import Plan
    from binarize.inspection import Inspection, inspect
    from binarize.latency import Profile, profile
    from binarize.lower import PackedNetwork, export_onnx, pack
    from binarize.policy import Policy, policies
    from binarize.prepare import prepare_student
    from binarize.report import Frontier, Report, report
    from binarize.report.sensitivity import Sensitivity
    from binarize.sensitivity.measure import sensitivity
    from binarize.train import Trainer, recalibrate

__version__ = "0.1.0"

__all__ = [
    "BinarizeError",
    "Frontier",
    "Inspection",
    "PackedNetwork",
    "Plan",
    "Policy",
    "Profile",
    "Report",
    "Sensitivity",
    "Trainer",
    "calibrate",
    "convert",
    "export_onnx",
    "from_pretrained",
    "inspect",
    "load",
    "nn",
    "ops",
    "pack",
    "plan",
    "policies",
    "prepare_student",
    "profile",
    "push_to_hub",
    "recalibrate",
    "report",
    "save",
    "save_pretrained",
    "sensitivity",
]

# Public names and their sub-packages, imported on first use: importing torch takes seconds, and the
# command line's help does not need it.
_HOMES = {
    "Frontier": "report",
    "Inspection": "inspection",
    "PackedNetwork": "lower",
    "Plan": "graph",
    "Policy": "policy",
    "Profile": "latency",
    "Report": "report",
    "Sensitivity": "report",
    "Trainer": "train",
    "calibrate": "calibration",
    "convert": "budget",
    "export_onnx": "lower",
    "from_pretrained": "file",
    "inspect": "inspection",
    "load": "file",
    "pack": "lower",
    "plan": "budget",
    "policies": "policy",
    "prepare_student": "prepare",
    "profile": "latency",
    "push_to_hub": "file",
    "recalibrate": "train",
    "report": "report",
    "save": "file",
    "save_pretrained": "file",
    "sensitivity": "sensitivity",
}


class _Package(ModuleType):
    """This package's module type.

    A sub-package becomes an attribute of its parent when it is first imported, whoever does it;
    where a public function has the same name, the function is kept.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in _HOMES:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in ("nn", "ops"):
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List public names, including those not imported yet."""
    return sorted({*globals(), *__all__})
