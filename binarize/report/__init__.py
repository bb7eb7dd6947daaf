"""The size of a network, layer by layer, and the decision about each layer."""

from binarize.report.frontier import Frontier, Point
from binarize.report.measure import report
from binarize.report.numbers import Report, Row
from binarize.report.packed import PackedReport, PackedRow
from binarize.report.sensitivity import Sensitivity, SiteSensitivity

__all__ = [
    "Frontier",
    "PackedReport",
    "PackedRow",
    "Point",
    "Report",
    "Row",
    "Sensitivity",
    "SiteSensitivity",
    "report",
]
