"""Tables that a click sorts and a search field filters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from binarize.page.markup import Markup, element

__all__ = ["Cell", "table"]

# Text of more characters than this wraps, in a column that is wide enough to be read.
_LONG = 30


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it is sorted by.

    Attributes:
        text: What is shown.
        value: A number to sort by; ``None`` sorts by the text.
        numeric: Whether it is set as a number; the default is whether there is one.
        mark: CSS class of a coloured tag around the text.
        link: Address within the page that the text leads to.
    """

    text: str
    value: float | None = None
    numeric: bool = False
    mark: str | None = None
    link: str | None = None

    def markup(self) -> Markup:
        """The cell as an element."""
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
    """A table.

    Args:
        name: Identifies it on the page.
        heads: Titles of the columns.
        rows: Of each row its id on the page, or ``None``, and its cells.
        static: Without the search field and the buttons that sort.
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
