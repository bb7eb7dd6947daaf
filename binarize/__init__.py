"""Turn a trained convolutional PyTorch network into a 1-bit network."""

from binarize import nn, ops
from binarize.errors import BinarizeError
from binarize.file import load, save
from binarize.graph import Plan, convert, plan
from binarize.policy import Policy, policies
from binarize.report import Report, report

__version__ = "0.1.0"

__all__ = [
    "BinarizeError",
    "Plan",
    "Policy",
    "Report",
    "convert",
    "load",
    "nn",
    "ops",
    "plan",
    "policies",
    "report",
    "save",
]
