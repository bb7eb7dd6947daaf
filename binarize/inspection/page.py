"""An inspection as an HTML page, and as the small table of a notebook."""

from __future__ import annotations

from binarize.inspection.figures import (
    entropy_figure,
    histogram_figure,
    map_figure,
    parameter_figure,
)
from binarize.inspection.numbers import Inspection, LayerInspection
from binarize.page import (
    Cell,
    Markup,
    Section,
    document,
    figure_image,
    folded,
    notebook_view,
    table,
)

__all__ = ["inspection_page", "inspection_sections", "notebook_html"]

_HEADS = (
    "Layer",
    "Kind",
    "Binarizer",
    "Bits",
    "Channels",
    "Constant",
    "Calls",
    "Entropy",
    "Pooled",
)


def inspection_page(inspection: Inspection) -> str:
    """Build the page: a row for each binary layer, and the figures.

    Args:
        inspection: The numbers.
    """
    sections = inspection_sections(inspection)
    return document(f"Inspection of {inspection.network}", inspection.headline(), sections)


def inspection_sections(inspection: Inspection, prefix: str = "") -> list[Section]:
    """Return the sections, also for the page of something else.

    Args:
        inspection: The numbers.
        prefix: Begins all their ids.
    """
    rows = table(f"{prefix}layer-table", _HEADS, _rows(inspection))
    title = "Information in binary layers" if prefix else "Layers"
    sections = [Section(f"{prefix}layers", title, rows)]
    for name, title, figure in (
        ("histograms", "Distributions over all layers", histogram_figure(inspection)),
        ("entropy", "Channel entropy", entropy_figure(inspection)),
        ("parameters", "Learned binarizer parameters", parameter_figure(inspection)),
        ("maps", "Feature maps before and after", map_figure(inspection, ())),
    ):
        if figure is not None:
            image = figure_image(figure, title, chart=name != "maps")
            sections.append(Section(f"{prefix}{name}", title, image))
    return sections


def notebook_html(inspection: Inspection) -> Markup:
    """Build the headline, and the layers as a static table.

    Args:
        inspection: The numbers.
    """
    layers = table("", _HEADS, _rows(inspection), static=True)
    return notebook_view(inspection.headline(), folded(f"{len(inspection.layers)} layers", layers))


def _rows(inspection: Inspection) -> list[tuple[str | None, list[Cell]]]:
    return [(None, _cells(layer)) for layer in inspection.layers]


def _cells(layer: LayerInspection) -> list[Cell]:
    channels = len(layer.entropy)
    return [
        Cell(layer.name or "(root)"),
        Cell(layer.kind),
        Cell(layer.binarizer),
        Cell(str(layer.bits), layer.bits),
        Cell(str(channels or "-"), channels or None, numeric=True),
        Cell(str(layer.constant) if channels else "-", layer.constant, numeric=True),
        Cell(str(layer.calls), layer.calls),
        _number(layer.mean_entropy),
        _number(layer.mean_pooled_entropy),
    ]


def _number(value: float | None) -> Cell:
    return Cell("-" if value is None else f"{value:.3f}", value, numeric=True)
