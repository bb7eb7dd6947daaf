"""Treemaps: areas proportional to numbers, grouped by the first part of a dotted name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from binarize.extras import naming_the_extra
from binarize.page.markup import Markup, element

__all__ = ["Tile", "treemap"]

_WIDTH, _HEIGHT, _LABEL = 1000.0, 420.0, 16.0
# Average width of a character at the labels' font size.
_CHARACTER = 6.4

_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Tile:
    """One area.

    Attributes:
        name: Dotted name.
        size: Its number; zero is not drawn.
        shown: The number as displayed.
        mark: CSS class of its colour.
        link: Anchor within the page that it links to.
    """

    name: str
    size: float
    shown: str
    mark: str
    link: str | None = None


def treemap(tiles: Iterable[Tile], title: str) -> Markup:
    """Draw a treemap as SVG.

    Args:
        tiles: The areas.
        title: Alternative text.
    """
    groups: dict[str, list[Tile]] = {}
    tiles = [tile for tile in tiles if tile.size > 0]
    shared = _shared(tiles)
    for tile in tiles:
        groups.setdefault(".".join(tile.name.split(".")[: shared + 1]), []).append(tile)
    parts: list[Markup] = []
    sums = [sum(tile.size for tile in group) for group in groups.values()]
    for index, box in _layout(sums, (0.0, 0.0, _WIDTH, _HEIGHT)):
        head, group = list(groups.items())[index]
        x, y, width, height = box
        stem = ""
        if len(group) > 1 and height > 3 * _LABEL and width > 40:
            stem = f"{head}."
            parts.append(_label(head, (x + 4, y + 12), width - 8, "group"))
            box = (x + 1, y + _LABEL, width - 2, height - _LABEL - 1)
        for inner, place in _layout([tile.size for tile in group], box):
            parts.append(_tile(group[inner], place, stem))
    return element(
        "svg",
        element("title", title),
        *parts,
        viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}",
        class_="treemap",
        role="group",
        aria_label=title,
    )


def _shared(tiles: Sequence[Tile]) -> int:
    """Return how many leading name parts all tiles share, at most all but the last."""
    names = [tile.name.split(".") for tile in tiles]
    count = 0
    while names and all(len(n) > count + 1 and n[count] == names[0][count] for n in names):
        count += 1
    return count


def _layout(sizes: Sequence[float], box: _Box) -> list[tuple[int, _Box]]:
    """Lay out boxes for numbers, largest first: each one's index and position."""
    x, y, width, height = box
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    if not order or width <= 0 or height <= 0:
        return []
    with naming_the_extra():
        import squarify
    scaled = squarify.normalize_sizes([sizes[i] for i in order], width, height)
    boxes = squarify.squarify(scaled, x, y, width, height)
    return [(i, (b["x"], b["y"], b["dx"], b["dy"])) for i, b in zip(order, boxes, strict=True)]


def _tile(tile: Tile, box: _Box, stem: str) -> Markup:
    x, y, width, height = box
    sized = {"x": f"{x:.2f}", "y": f"{y:.2f}", "width": f"{width:.2f}", "height": f"{height:.2f}"}
    parts = [
        element("rect", element("title", f"{tile.name}: {tile.shown}"), class_=tile.mark, **sized)
    ]
    if height > 14 and width > 30:
        parts.append(_label(tile.name.removeprefix(stem), (x + 4, y + 13), width - 8, "name"))
        # A truncated number would be misread.
        if height > 30 and len(tile.shown) * _CHARACTER < width - 8:
            parts.append(_label(tile.shown, (x + 4, y + 27), width - 8, "size"))
    if tile.link is None:
        return element("g", *parts)
    return element("a", *parts, href=tile.link, aria_label=f"{tile.name}: {tile.shown}")


def _label(text: str, at: tuple[float, float], room: float, kind: str) -> Markup:
    length = int(room / _CHARACTER)
    if len(text) > length:
        # The end of a name is more informative than its beginning.
        text = f"…{text[len(text) - length + 1 :]}" if length > 3 else ""
    return element("text", text, x=f"{at[0]:.2f}", y=f"{at[1]:.2f}", class_=kind)
