"""A frontier as an HTML page, and as the small table of a notebook."""

from __future__ import annotations

from binarize.page import (
    Cell,
    Markup,
    Section,
    document,
    element,
    figure_image,
    notebook_view,
    table,
)
from binarize.report.frontier import Frontier
from binarize.report.frontier_figure import TITLES, figure

__all__ = ["frontier_page", "notebook_html"]

_Rows = list[tuple[str | None, list[Cell]]]


def frontier_page(frontier: Frontier) -> str:
    """Build the page: the figure, which network to take, and all points.

    Args:
        frontier: Its points.
    """
    heads, rows = _table(frontier)
    image = figure_image(figure(frontier), f"{frontier.metric} against latency and size")
    sections = [
        Section("figure", "Accuracy, latency and size", image),
        Section("advice", "Which one to take", _advice(frontier)),
        Section("points", "Networks", table("point-table", heads, rows)),
    ]
    return document(f"Frontier of {frontier.network}", frontier.headline(), sections)


def notebook_html(frontier: Frontier) -> Markup:
    """Build the headline, the points as a static table, and the advice.

    Args:
        frontier: Its points.
    """
    heads, rows = _table(frontier)
    points = table("", heads, rows, static=True)
    return notebook_view(frontier.headline(), points, _advice(frontier))


def _advice(frontier: Frontier) -> Markup:
    return element("ul", *(element("li", line) for line in frontier.advice().splitlines()))


def _table(frontier: Frontier) -> tuple[tuple[str, ...], _Rows]:
    """Return the columns of :meth:`Frontier.rows`, with the kind and the file of each point."""
    (first, *heads, last), *texts = frontier.rows()
    rows: _Rows = []
    for point, (name, *numbers, other) in zip(frontier.points, texts, strict=True):
        words = [Cell(name), Cell(TITLES[point.kind])]
        rows.append((None, [*words, *map(_number, numbers), Cell(other), Cell(point.file)]))
    return (first, "Kind", *heads, last, "File"), rows


def _number(text: str) -> Cell:
    return Cell(text, float(text.rstrip("×")) if text else None, numeric=True)
