"""Figures of an inspection, drawn without a display and without matplotlib's global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from torch import Tensor

from binarize.extras import naming_the_extra
from binarize.inspection.numbers import FeatureMap, Inspection, LayerInspection

with naming_the_extra():
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

__all__ = ["entropy_figure", "histogram_figure", "map_figure", "parameter_figure"]

# Up to this many values per layer are drawn individually.
_FEW = 8
_FILL, _LINE, _ACCENT = "#9ecae1", "#2171b5", "#d94801"


def entropy_figure(inspection: Inspection) -> Figure:
    """Plot channel entropies per layer, and per feature map of the first layer (Fig. 6d)."""
    layers = [layer for layer in inspection.layers if layer.entropy]
    figure = _figure(_width(len(layers)) + 3.6, 4.6)
    grid = figure.add_gridspec(1, 2, width_ratios=(_width(len(layers)), 3.2))
    left, right = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    _boxes(left, layers, [layer.entropy for layer in layers])
    places = range(len(layers))
    means = [fmean(layer.entropy) for layer in layers]
    pooled = [fmean(layer.pooled_entropy) for layer in layers]
    left.plot(places, means, "o", color=_ACCENT, markersize=4)
    left.plot(places, pooled, "_", color="black", markersize=7)
    most = max((layer.bits for layer in layers), default=1)
    left.set_ylim(-0.03 * most, 1.03 * most)
    left.set_ylabel("channel entropy, bits")
    left.set_title(
        "Channel entropy after binarization, per layer\n"
        "box: quartiles, whiskers: 5 to 95 %, dot: mean, dash: mean over pooled samples",
        fontsize=8,
    )
    _histogram(right, layers)
    return figure


def parameter_figure(inspection: Inspection) -> Figure | None:
    """Plot the binarizers' learned parameters, one panel each (BiDense, Figs. 6a-c).

    Returns:
        The figure; ``None`` if none of them has parameters.
    """
    names = dict.fromkeys(name for layer in inspection.layers for name in layer.parameters)
    if not names:
        return None
    layers = [layer for layer in inspection.layers if layer.parameters]
    figure = _figure(_width(len(layers)), 1.2 + 1.9 * len(names))
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for panel, name in zip(panels, names, strict=True):
        values = [
            [v for v in layer.parameters.get(name, ()) if math.isfinite(v)] for layer in layers
        ]
        _boxes(panel, layers, [some if len(some) > _FEW else () for some in values])
        dots = [(i, v) for i, some in enumerate(values) if len(some) <= _FEW for v in some]
        panel.plot([i for i, _ in dots], [v for _, v in dots], "o", color=_ACCENT, markersize=4)
        panel.set_ylabel(name)
    panels[0].set_title(
        f"Binarizer parameters\nbox: quartiles, whiskers: 5 to 95 %, dots: up to {_FEW} values",
        fontsize=8,
    )
    return figure


def histogram_figure(inspection: Inspection) -> Figure | None:
    """Plot histograms over all layers: channel entropy, and each learned parameter.

    Returns:
        The figure; ``None`` if nothing was measured.
    """
    entropy = "channel entropy, bits"
    values = {entropy: [value for layer in inspection.layers for value in layer.entropy]}
    for layer in inspection.layers:
        for name, learned in layer.parameters.items():
            values.setdefault(name, []).extend(filter(math.isfinite, learned))
    shown = {name: some for name, some in values.items() if some}
    if not shown:
        return None
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = _figure(max(4.5, 3.0 * columns), 2.4 * rows)
    for place, (name, some) in enumerate(shown.items()):
        axes: Any = figure.add_subplot(rows, columns, place + 1)
        axes.hist(some, bins=40, color=_FILL, edgecolor=_LINE, linewidth=0.5)
        axes.set_xlabel(name.replace("$", r"\$"), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.xaxis.get_major_locator().set_params(nbins=5)
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", linewidth=0.3)
        axes.set_axisbelow(True)
    return figure


def map_figure(
    inspection: Inspection, pictures: Sequence[tuple[str, Tensor]] = ()
) -> Figure | None:
    """Plot feature maps before and after binarization, channel means (BiDense, Fig. 3).

    Args:
        inspection: The numbers.
        pictures: Name and image (uint8, (3, H, W)) of the first batches.

    Returns:
        The figure; ``None`` if no feature maps were kept.
    """
    maps = inspection.maps
    if not maps:
        return None
    columns = 3 if pictures else 2
    figure = _figure(3.4 * columns, 0.6 + 2.6 * len(maps))
    axes = figure.subplots(len(maps), columns, squeeze=False)
    for row, kept in zip(axes, maps, strict=True):
        named = kept.batch < len(pictures)
        name = pictures[kept.batch][0] if named else f"batch {kept.batch}, sample {kept.sample}"
        if pictures:
            row[0].set_axis_off()
            if named:
                row[0].imshow(pictures[kept.batch][1].permute(1, 2, 0).numpy())
        row[0].set_title(name, fontsize=8)
        _draw_map(figure, row[-2], kept.before)
        _draw_map(figure, row[-1], kept.after)
        lead = "" if pictures else f"{name}\n"
        row[-2].set_title(f"{lead}before", fontsize=8)
        row[-1].set_title(f"after, {_entropy_of(kept)}", fontsize=8)
    figure.suptitle(
        f"Input of {inspection.maps_of or 'the layer'}, mean over its channels", fontsize=9
    )
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _width(layers: int) -> float:
    """Return the width in inches for a number of layers."""
    return min(max(4.5, 0.22 * layers + 1.2), 40.0)


def _boxes(axes: Any, layers: Sequence[LayerInspection], values: Sequence[Sequence[float]]) -> None:
    """Draw a box for each layer with several values, and all layers' names below."""
    filled = [i for i, some in enumerate(values) if len(some) > 1]
    if filled:
        axes.boxplot(
            [values[i] for i in filled],
            positions=filled,
            widths=0.7,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": _FILL, "edgecolor": _LINE, "linewidth": 0.7},
            medianprops={"color": _LINE, "linewidth": 1.2},
            whiskerprops={"color": _LINE, "linewidth": 0.7},
            capprops={"color": _LINE, "linewidth": 0.7},
        )
    axes.set_xlim(-0.7, len(layers) - 0.3)
    axes.set_xticks(range(len(layers)), [_label(layer.name) for layer in layers])
    axes.tick_params("x", labelrotation=90, labelsize=6)
    axes.grid(axis="y", linewidth=0.3)
    axes.set_axisbelow(True)


def _label(name: str) -> str:
    # The end of a name is more informative than its beginning; "$" would start a formula.
    shown = name if len(name) <= 34 else f"…{name[-33:]}"
    return shown.replace("$", r"\$") or "(root)"


def _histogram(axes: Any, layers: Sequence[LayerInspection]) -> None:
    if layers:
        first = layers[0]
        axes.hist(first.map_entropy, bins=40, range=(0, first.bits), color=_FILL, edgecolor=_LINE)
        axes.set_title(f"First binarization:\n{_label(first.name)}", fontsize=8)
    axes.set_xlabel("entropy of a feature map, mean over its channels", fontsize=8)
    axes.set_ylabel("maps")
    axes.yaxis.get_major_locator().set_params(integer=True)


def _draw_map(figure: Figure, axes: Any, values: Tensor) -> None:
    """Draw an image for two dimensions, a curve for one, the middle slice for more."""
    while values.dim() > 2:
        values = values[values.shape[0] // 2]
    if values.dim() < 2:
        axes.plot(values.reshape(-1).numpy(), color=_LINE, linewidth=0.8)
        return
    axes.set_axis_off()
    shown = axes.imshow(values.numpy(), cmap="viridis", interpolation="nearest")
    figure.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=6)


def _entropy_of(kept: FeatureMap) -> str:
    return f"entropy {kept.entropy:.3f}"
