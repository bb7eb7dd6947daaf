"""Binarize trained convolutional PyTorch networks."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from binarize.errors import BinarizeError as BinarizeError

if TYPE_CHECKING:
    # The names of __all__ for type checkers, to which "as" says that they are public here.
    from binarize import nn as nn
    from binarize import ops as ops
    from binarize.budget.convert import convert as convert
    from binarize.budget.convert import plan as plan
    from binarize.calibration import calibrate as calibrate
    from binarize.file.hub import from_pretrained as from_pretrained
    from binarize.file.hub import push_to_hub as push_to_hub
    from binarize.file.hub import save_pretrained as save_pretrained
    from binarize.file.load import load as load
    from binarize.file.save import save as save
    from binarize.file.tasks import remove_task as remove_task
    from binarize.file.tasks import tasks as tasks
    from binarize.frontier import frontier as frontier
    from binarize.graph.plan import Plan as Plan
    from binarize.inspection import Inspection as Inspection
    from binarize.inspection import inspect as inspect
    from binarize.latency import Profile as Profile
    from binarize.latency import profile as profile
    from binarize.lower import PackedNetwork as PackedNetwork
    from binarize.lower import export_onnx as export_onnx
    from binarize.lower import pack as pack
    from binarize.policy import Policy as Policy
    from binarize.policy import policies as policies
    from binarize.prepare import prepare_student as prepare_student
    from binarize.report import Frontier as Frontier
    from binarize.report import Report as Report
    from binarize.report import report as report
    from binarize.report.sensitivity import Sensitivity as Sensitivity
    from binarize.sensitivity.measure import sensitivity as sensitivity
    from binarize.sharing.add_task import add_task as add_task
    from binarize.sharing.report import TasksReport as TasksReport
    from binarize.sharing.report import report_tasks as report_tasks
    from binarize.train import Trainer as Trainer
    from binarize.train import recalibrate as recalibrate
    from binarize.video import Stream as Stream

__version__ = "0.1.0"

# The public names and their sub-packages, imported on first use: importing torch takes seconds, and
# the command line's help does not need it.
_HOMES = {
    "Frontier": "report",
    "Inspection": "inspection",
    "PackedNetwork": "lower",
    "Plan": "graph",
    "Policy": "policy",
    "Profile": "latency",
    "Report": "report",
    "Sensitivity": "report",
    "Stream": "video",
    "TasksReport": "sharing",
    "Trainer": "train",
    "add_task": "sharing",
    "calibrate": "calibration",
    "convert": "budget",
    "export_onnx": "lower",
    "from_pretrained": "file",
    "frontier": "frontier",
    "inspect": "inspection",
    "load": "file",
    "pack": "lower",
    "plan": "budget",
    "policies": "policy",
    "prepare_student": "prepare",
    "profile": "latency",
    "push_to_hub": "file",
    "recalibrate": "train",
    "remove_task": "file",
    "report": "report",
    "report_tasks": "sharing",
    "save": "file",
    "save_pretrained": "file",
    "sensitivity": "sensitivity",
    "tasks": "file",
}
_PACKAGES = ("nn", "ops")

__all__ = sorted(["BinarizeError", *_PACKAGES, *_HOMES])


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
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List public names, including those not imported yet."""
    return sorted({*globals(), *__all__})
