"""The figure of a file's tasks: where each differs from the base, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from binarize.extras import naming_the_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from binarize.sharing.report import TasksReport

__all__ = ["figure"]

_LONGEST = 34


def figure(made: TasksReport) -> Figure:
    """Draw the shares of flipped bits and of differing inputs per layer, a line per task.

    Like Figs. 2 and 3 of the supplement to "Efficient Computation Sharing for Multi-Task Visual
    Scene Understanding" (Shoouri et al., ICCV 2023), which show the rest, the sparsity: with few
    flips, that would be a line at 100 %.

    Args:
        made: The report; the second panel is left out if no inputs were measured.
    """
    with naming_the_extra():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    layers = made.layers
    panels: dict[str, Callable[[str, str], float | None]] = {
        "flipped bits of the weight, %": lambda task, layer: _flips(made, task, layer)
    }
    if made.inputs is not None:
        panels["differing bits of the input, %"] = made.differing
    width = min(max(5.5, 0.22 * len(layers) + 1.5), 40.0)
    drawn = Figure(figsize=(width, 1.4 + 2.2 * len(panels)), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for (title, share), axis in zip(panels.items(), axes, strict=True):
        largest = 0.0
        for place, task in enumerate(made.tasks):
            shares = [share(task.name, layer) for layer in layers]
            values = [float("nan") if value is None else 100 * value for value in shares]
            largest = max(largest, *(x for x in values if x == x), 0.0)
            marker = "os^Dv"[place % 5]
            axis.plot(values, marker=marker, markersize=3, linewidth=1, label=_plain(task.name))
        axis.set_ylabel(title, fontsize=8)
        axis.set_ylim(0, 1.08 * largest or 1)
        axis.tick_params(labelsize=7)
        axis.grid(axis="y", linewidth=0.3)
    last: Any = axes[-1]
    names = (x if len(x) <= _LONGEST else f"…{x[1 - _LONGEST :]}" for x in layers)
    last.set_xticks(range(len(layers)), [_plain(name) for name in names])
    last.tick_params("x", labelrotation=90, labelsize=6)
    if made.tasks:
        axes[0].legend(fontsize=7)
    axes[0].set_title("Where each task differs from the base", fontsize=9)
    return drawn


def _flips(made: TasksReport, task: str, layer: str) -> float | None:
    known = next(each.layers.get(layer) for each in made.tasks if each.name == task)
    return None if known is None or not known[1] else known[0] / known[1]


def _plain(text: str) -> str:
    # "$" would start a formula.
    return text.replace("$", r"\$") or "(root)"
