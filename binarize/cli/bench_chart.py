"""Draw a benchmark chart: latency with its spread, memory and file size of the versions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from binarize.bench import Measured

__all__ = ["draw"]


def draw(path: Path, title: str, rows: Sequence[Measured]) -> None:
    """Write the chart.

    Args:
        path: The file to write.
        title: The title.
        rows: The versions; those that do not run have empty bars.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.45 * len(rows)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    axes: Any = figure.subplots(1, 3, sharey=True)
    panels = (
        ("latency, ms (line: middle half)", [(row.latency or 0) * 1e3 for row in rows]),
        ("peak memory, MB (light: libraries)", [(row.peak_bytes or 0) / 1e6 for row in rows]),
        ("file, MB", [(row.file_bytes or 0) / 1e6 for row in rows]),
    )
    colors = ["tab:green" if row.name == "packed" else "tab:gray" for row in rows]
    places = range(len(rows))
    for axis, (name, values) in zip(axes, panels, strict=True):
        axis.barh(places, values, color=colors, height=0.6)
        axis.set_title(name, fontsize=9)
        axis.set_xlim(0, 1.35 * max(*values, 1e-9))
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    ends = [list(values) for _, values in panels]
    for place, row in enumerate(rows):
        if row.quartiles is not None:
            low, high = (1e3 * value for value in row.quartiles)
            axes[0].plot([low, high], [place, place], color="black")
            ends[0][place] = max(ends[0][place], high)
        if row.idle_bytes is not None:
            axes[1].barh(place, row.idle_bytes / 1e6, color="white", alpha=0.6, height=0.6)
    for axis, (_, values), right in zip(axes, panels, ends, strict=True):
        for place, value in enumerate(values):
            axis.text(right[place], place, f"  {value:.3g}" if value else "", va="center", size=8)
    axes[0].set_yticks(places, [row.name for row in rows])
    axes[0].invert_yaxis()
    figure.savefig(path)
