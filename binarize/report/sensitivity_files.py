"""A sensitivity as files: its numbers, and a figure drawn without a display."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.errors import FileError
from binarize.extras import naming_the_extra
from binarize.report.sensitivity import MODES, Sensitivity, SiteSensitivity
from binarize.writing import atomic_write_dir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NAMES", "figure", "write"]

NAMES = ("sensitivity.json", "sensitivity.png")
_FILL, _LINE = "#9ecae1", "#2171b5"
# Viewers fail on figures larger than this, in inches.
_TALLEST = 150.0


def write(result: Sensitivity, folder: Path) -> tuple[Path, ...]:
    """Write a result, see :meth:`Sensitivity.save`.

    Args:
        result: The numbers.
        folder: The folder to write to.

    Returns:
        The files.

    Raises:
        FileError: The folder cannot be written.
    """
    text = json.dumps(result.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        with atomic_write_dir(folder, NAMES) as temporary:
            (temporary / NAMES[0]).write_text(text + "\n", encoding="utf-8")
            figure(result).savefig(temporary / NAMES[1], dpi=130)
    except OSError as error:
        raise FileError(
            "folder",
            str(folder),
            f"cannot be written ({error.strerror or error})",
            "choose a folder that you can write to",
        ) from error
    return tuple(folder / name for name in NAMES)


def figure(result: Sensitivity) -> Figure:
    """Draw bars for each layer, in order of execution: distance, and loss of the metric."""
    with naming_the_extra():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    rows = result.sites
    panels = [("distance", "distance_error", "distance from the float network's output")]
    if result.metric is not None:
        panels.append(("drop", "drop_error", f"loss of {result.metric}"))
    made = Figure(
        figsize=(3.4 + 3.6 * len(panels), min(1.5 + 0.19 * max(len(rows), 1), _TALLEST)),
        layout="constrained",
    )
    FigureCanvasAgg(made)
    axes = made.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (value, error, title) in zip(axes, panels, strict=True):
        _bars(panel, rows, value, error)
        _marks(panel, result, value)
        panel.set_xlabel(title, fontsize=8)
        panel.tick_params("x", labelsize=7)
        panel.grid(axis="x", linewidth=0.3)
        panel.set_axisbelow(True)
        panel.axvline(0, color="black", linewidth=0.6)
    axes[0].set_yticks(range(len(rows)), [_label(row) for row in rows])
    axes[0].tick_params("y", labelsize=6.5)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    made.suptitle(
        f"{result.network}, {result.policy}: {MODES[result.mode]}\n"
        "layers in order of execution, lines: ± one standard error over the batches",
        fontsize=8,
    )
    return made


def _bars(axes: Any, rows: Sequence[SiteSensitivity], value: str, error: str) -> None:
    for place, row in enumerate(rows):
        length, spread = getattr(row, value), getattr(row, error)
        if length is None or not math.isfinite(length):
            axes.annotate("not a number", (0, place), fontsize=6, va="center")
            continue
        axes.barh(place, length, height=0.75, color=_FILL, edgecolor=_LINE, linewidth=0.6)
        if spread is not None and math.isfinite(spread):
            axes.plot((length - spread, length + spread), (place, place), color=_LINE, linewidth=1)


def _marks(axes: Any, result: Sensitivity, value: str) -> None:
    """Mark each layer's value with the bits of other policies."""
    for name, marker in zip(result.more, itertools.cycle("o^sDv")):
        lengths = [row.more.get(name, {}).get(value) for row in result.sites]
        shown = [x if x is not None and math.isfinite(x) else math.nan for x in lengths]
        axes.plot(shown, range(len(shown)), marker, markersize=2.5, label=name)
    if result.more:
        axes.legend(fontsize=6, title="with the bits of", title_fontsize=6)


def _label(row: SiteSensitivity) -> str:
    # The end of a name is more specific than its beginning; "$" would start a formula.
    shown = row.site if len(row.site) <= 40 else f"…{row.site[-39:]}"
    return shown.replace("$", r"\$") or "(root)"
