"""A sensitivity as an HTML page."""

from __future__ import annotations

from binarize.page import Cell, Section, document, figure_image, table
from binarize.report.sensitivity import Sensitivity
from binarize.report.sensitivity_files import figure

__all__ = ["sensitivity_page"]

_HEADS = ("Layer", "Kind", "Shape", "Action", "Distance", "±", "Disagreement", "Drop", "±")


def sensitivity_page(result: Sensitivity) -> str:
    """The page: what each layer costs, the most sensitive first, and the figure.

    Args:
        result: The numbers.
    """
    rows: list[tuple[str | None, list[Cell]]] = []
    for row in result.ranked():
        numbers = [row.distance, row.distance_error, row.disagreement, row.drop, row.drop_error]
        numbers += [row.more.get(name, {}).get("distance") for name in result.more]
        shape = "×".join(map(str, row.shape))
        words = [Cell(row.site), Cell(row.kind), Cell(shape), Cell(row.action)]
        rows.append((None, [*words, *map(_number, numbers)]))
    heads = (*_HEADS, *(f"Distance, {name}" for name in result.more))
    sections = [Section("layers", "Layers", table("layer-table", heads, rows))]
    if result.sites:
        image = figure_image(figure(result), "Sensitivity of each layer")
        sections.append(Section("figure", "In the order in which they run", image))
    return document(f"Sensitivity of {result.network}", result.headline(), sections)


def _number(value: float | None) -> Cell:
    return Cell("-" if value is None else f"{value:.4f}", value, numeric=True)
