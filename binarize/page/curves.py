"""Curves of a training: its numbers per epoch as small charts.

Not imported with the package: matplotlib takes a while to load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["curves_figure", "panels", "speed"]

_LOSSES = ("loss", "val_loss", "distillation")
_OTHERS = ("epoch", "seconds", "images", "lr", "flip_ratio")
_COLUMNS, _WIDTH, _HEIGHT, _MARGIN = 2, 4.6, 2.5, 0.62
# Curves up to this many epochs have a dot for each.
_FEW = 30


@dataclass(frozen=True)
class Theme:
    """Colours of a chart on a page's background."""

    ink: str
    soft: str
    line: str
    paper: str
    curves: tuple[str, ...]


LIGHT = Theme(
    "#1c2230",
    "#5b6474",
    "#dde1e9",
    "#ffffff",
    ("#2456c9", "#c2410c", "#2c7a4b", "#8250c4", "#b0892b", "#0e7490", "#be185d"),
)
DARK = Theme(
    "#e5e9f2",
    "#9da7b8",
    "#313947",
    "#12151c",
    ("#8ab4ff", "#f6a06a", "#7fd1a0", "#c3a3f2", "#e2c46d", "#67d3e6", "#f49ac1"),
)

Curves = dict[str, list[float]]


def speed(record: Mapping[str, Any]) -> float | None:
    """Return an epoch's images per second of training; ``None`` if it was not recorded.

    Args:
        record: The epoch's history entry.
    """
    images, seconds = record.get("images"), record.get("seconds")
    return images / seconds if images and seconds else None


def panels(history: Sequence[Mapping[str, Any]]) -> dict[str, Curves]:
    """Return what each chart shows: by its title the curves, NaN where an epoch has no number.

    Args:
        history: The epochs' entries, see :meth:`binarize.train.Trainer.fit`.
    """
    names = list(
        dict.fromkeys(
            name
            for record in history
            for name, value in record.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        )
    )
    metrics = {n: _values(history, n) for n in names if n not in (*_LOSSES, *_OTHERS)}
    # Shares and what can be larger than 1 (metres) do not share a scale.
    shares = {n: v for n, v in metrics.items() if all(not x > 1 for x in v)}
    charts: dict[str, Curves] = {
        "loss": {n: _values(history, n) for n in _LOSSES if n in names},
        "metrics" if len(shares) < len(metrics) else "validation metrics": shares,
        "other metrics": {n: v for n, v in metrics.items() if n not in shares},
        "learning rate": {"lr": _values(history, "lr")},
        "images per second": {"images/s": [_number(speed(record)) for record in history]},
        "binary weights that changed sign": {"flip_ratio": _values(history, "flip_ratio")},
    }
    return {
        title: known
        for title, curves in charts.items()
        if (known := {n: v for n, v in curves.items() if any(map(math.isfinite, v))})
    }


def curves_figure(
    history: Sequence[Mapping[str, Any]], *, best: int | None = None, dark: bool = False
) -> Figure:
    """Draw the curves of a training.

    Args:
        history: The epochs' entries; at least one.
        best: Number of the best epoch, which is marked.
        dark: For a dark background.
    """
    theme = DARK if dark else LIGHT
    charts = panels(history)
    rows = max(1, math.ceil(len(charts) / _COLUMNS))
    size = _COLUMNS * _WIDTH, rows * _HEIGHT
    figure = Figure(figsize=size, dpi=100, facecolor=theme.paper)
    FigureCanvasAgg(figure)
    # Fixed margins: matplotlib's own layouts take longer than all the drawing.
    figure.subplots_adjust(
        left=_MARGIN / size[0],
        right=1 - 0.15 / size[0],
        bottom=0.5 / size[1],
        top=1 - 0.35 / size[1],
        wspace=0.22,
        hspace=0.45,
    )
    epochs = [record["epoch"] for record in history]
    for place, (title, curves) in enumerate(charts.items()):
        axes = figure.add_subplot(rows, _COLUMNS, place + 1)
        _draw(axes, epochs, title, curves, theme)
        if best is not None and "metrics" in title:
            axes.axvline(best, color=theme.soft, linewidth=0.9, linestyle=":")
            axes.set_title(f"{title} (dotted: the best epoch)", fontsize=9, color=theme.ink)
        if place >= len(charts) - _COLUMNS:
            axes.set_xlabel("epoch", fontsize=8, color=theme.soft)
    return figure


def _draw(axes: Any, epochs: Sequence[int], title: str, curves: Curves, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.set_title(title, fontsize=9, color=theme.ink)
    for place, (name, values) in enumerate(curves.items()):
        known = [(e, v) for e, v in zip(epochs, values, strict=True) if math.isfinite(v)]
        axes.plot(
            [e for e, _ in known],
            [v for _, v in known],
            marker="o" if len(known) <= _FEW else None,
            color=theme.curves[place % len(theme.curves)],
            linestyle="-" if place < len(theme.curves) else "--",
            markersize=2.5,
            linewidth=1.3,
            # Leading underscores and dollar signs mean something else to matplotlib.
            label=name.lstrip("_").replace("$", r"\$"),
        )
    if len(curves) > 1:
        box = axes.legend(fontsize=7, framealpha=0.7, facecolor=theme.paper, edgecolor=theme.line)
        for text in box.get_texts():
            text.set_color(theme.ink)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.tick_params(labelsize=7.5, color=theme.line, labelcolor=theme.soft)
    axes.grid(linewidth=0.4, color=theme.line)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.line)


def _values(history: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [_number(record.get(name)) for record in history]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
