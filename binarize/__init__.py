"""Turn a trained convolutional PyTorch network into a 1-bit network."""

from typing import TYPE_CHECKING, Any

from binarize import nn, ops
from binarize.errors import BinarizeError
from binarize.file import load, save
from binarize.graph import Plan, convert, plan
from binarize.policy import Policy, policies
from binarize.report import Report, report

if TYPE_CHECKING:
    from binarize.train import Trainer, recalibrate

__version__ = "0.1.0"

__all__ = [
    "BinarizeError",
    "Plan",
    "Policy",
    "Report",
    "Trainer",
    "convert",
    "load",
    "nn",
    "ops",
    "plan",
    "policies",
    "recalibrate",
    "report",
    "save",
]


def __getattr__(name: str) -> Any:
    """Import the trainer, and the libraries it stands on, when it is first asked for."""
    if name in ("Trainer", "recalibrate"):
        from binarize import train

        return getattr(train, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
