"""The figure of a frontier: metric against latency, with bubbles scaled by file size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from binarize.extras import naming_the_extra
from binarize.report.frontier import Frontier

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TITLES", "figure"]

_COLORS = {"binarized": "tab:green", "float": "tab:gray", "rival": "tab:orange"}
TITLES = {
    "binarized": "binarized",
    "float": "the float network",
    "rival": "other float networks",
}


def figure(frontier: Frontier) -> Figure:
    """Draw a frontier.

    Args:
        frontier: Its points.
    """
    with naming_the_extra():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter

    made = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(made)
    axis: Any = made.subplots()
    split, largest = frontier.split, max(point.bytes for point in frontier.points)
    shown = set()
    for point in frontier.points:
        title = TITLES[point.kind] if point.kind not in shown else None
        shown.add(point.kind)
        on_it = frontier.dominated_by(point) is None
        value = point.metrics[split]
        axis.scatter(
            point.milliseconds,
            value,
            s=30 + 900 * point.bytes / largest,
            color=_COLORS[point.kind],
            alpha=0.7 if on_it else 0.25,
            edgecolors="black" if on_it else "none",
        )
        if title is not None:
            axis.scatter([], [], s=60, color=_COLORS[point.kind], label=title)
        axis.annotate(
            f"{point.name}\n{point.bytes / 1e6:.2f} MB",
            (point.milliseconds, value),
            xytext=(6, 4),
            textcoords="offset points",
            fontsize=7,
            color="black" if on_it else "gray",
        )
    axis.set_xscale("log")
    for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        ticks(FuncFormatter(lambda value, place: f"{value:g}"))
    axis.set_xlabel(f"milliseconds, {frontier.inputs}")
    axis.set_ylabel(f"{frontier.metric}, {split}")
    axis.margins(0.15)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="best", fontsize=8, title="bubble: bytes; faded: dominated", title_fontsize=8)
    axis.set_title(f"{frontier.network}; {frontier.machine}", fontsize=9)
    return made
