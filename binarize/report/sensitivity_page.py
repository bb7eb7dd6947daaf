"""A sensitivity as an HTML page, and as the small table of a notebook."""

from __future__ import annotations

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
from binarize.report.sensitivity import Sensitivity
from binarize.report.sensitivity_files import figure

__all__ = ["notebook_html", "sensitivity_page"]

_Rows = list[tuple[str | None, list[Cell]]]

_HEADS = ("Layer", "Kind", "Shape", "Action", "Distance", "±", "Disagreement", "Drop", "±")


def sensitivity_page(result: Sensitivity) -> str:
    """The page: what each layer costs, the most sensitive first, and the figure.

    Args:
        result: The numbers.
    """
    heads, rows = _table(result)
    sections = [Section("layers", "Layers", table("layer-table", heads, rows))]
    if result.sites:
        image = figure_image(figure(result), "Sensitivity of each layer")
        sections.append(Section("figure", "In the order in which they run", image))
    return document(f"Sensitivity of {result.network}", result.headline(), sections)


def notebook_html(result: Sensitivity) -> Markup:
    """The headline, and the layers as a static table, the most sensitive first.

    Args:
        result: The numbers.
    """
    heads, rows = _table(result)
    layers = folded(f"{len(result.sites)} layers", table("", heads, rows, static=True))
    return notebook_view(result.headline(), layers)


def _table(result: Sensitivity) -> tuple[tuple[str, ...], _Rows]:
    rows: _Rows = []
    for row in result.ranked():
        numbers = [row.distance, row.distance_error, row.disagreement, row.drop, row.drop_error]
        numbers += [row.more.get(name, {}).get("distance") for name in result.more]
        shape = "×".join(map(str, row.shape))
        words = [Cell(row.site), Cell(row.kind), Cell(shape), Cell(row.action)]
        rows.append((None, [*words, *map(_number, numbers)]))
    return (*_HEADS, *(f"Distance, {name}" for name in result.more)), rows


def _number(value: float | None) -> Cell:
    return Cell("-" if value is None else f"{value:.4f}", value, numeric=True)
