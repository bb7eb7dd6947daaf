"""Tables with sorting by click and a search field."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from binarize.page.markup import Markup, element

__all__ = ["Cell", "table"]

# Longer text than this wraps, in a column of readable width.
_LONG = 30


@dataclass(frozen=True)
class Cell:
    """A table cell: its text and its sort key.

    Attributes:
        text: The text.
        value: A number to sort by; ``None`` sorts by the text.
        numeric: Whether it is aligned as a number; by default, whether there is a value.
        mark: CSS class of a coloured tag around the text.
        link: Anchor within the page that the text links to.
    """

    text: str
    value: float | None = None
    numeric: bool = False
    mark: str | None = None
    link: str | None = None

    def markup(self) -> Markup:
        """Return the cell as an element."""
        inside: str = self.text
        if self.link is not None:
            inside = element("a", inside, href=self.link)
        if self.mark is not None:
            inside = element("span", inside, class_=f"tag {self.mark}")
        number = self.numeric or self.value is not None
        value = None if self.value is None else repr(float(self.value))
        kind = "number" if number else "long" if len(self.text) > _LONG else None
        return element("td", inside, class_=kind, data_value=value)


def table(
    name: str,
    heads: Sequence[str],
    rows: Iterable[tuple[str | None, Sequence[Cell]]],
    *,
    static: bool = False,
) -> Markup:
    """Build a table.

    Args:
        name: Identifies it on the page.
        heads: Titles of the columns.
        rows: For each row its id on the page, or ``None``, and its cells.
        static: Omit the search field and the sort buttons.
    """
    rows = list(rows)
    body = element(
        "tbody", *(element("tr", *(c.markup() for c in cells), id=id_) for id_, cells in rows)
    )
    numbers = [any(c.numeric or c.value is not None for c in column) for column in _columns(rows)]
    titles = [
        element(
            "th",
            head if static else element("button", head, type="button"),
            scope="col",
            class_="number" if number else None,
        )
        for head, number in zip(heads, numbers or [False] * len(heads), strict=True)
    ]
    made = element("table", element("thead", element("tr", *titles)), body, id=name)
    if static:
        return made
    search = element(
        "p",
        element("label", "Search ", element("input", type="search", data_for=name)),
        Markup(" "),
        element("output", f"{len(rows)} rows"),
        class_="search",
    )
    framed = element("div", made, class_="scroll", tabindex=0, role="region", aria_label=name)
    return Markup(search + framed)


def _columns(rows: Sequence[tuple[str | None, Sequence[Cell]]]) -> list[tuple[Cell, ...]]:
    return list(zip(*(cells for _, cells in rows), strict=True))
