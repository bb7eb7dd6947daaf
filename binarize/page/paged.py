"""What results with a page have in common: writing it, and their view in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from binarize.page.document import write_page
from binarize.page.markup import Markup, element

__all__ = ["Paged", "folded", "notebook_view"]


class Paged(ABC):
    """A result that can be shown as a page and in a notebook; subclasses supply the content."""

    @abstractmethod
    def _page(self) -> str:
        """Return the whole page, see :func:`binarize.page.document`."""

    @abstractmethod
    def _notebook(self) -> Markup:
        """Return static tables for a notebook, which has its own style and runs no script."""

    def to_html(self, path: str | Path) -> Path:
        """Write a page that shows everything; it needs no other file and works offline.

        Args:
            path: The file; an existing one is replaced.

        Returns:
            The file.

        Raises:
            FileError: It cannot be written.
        """
        return write_page(self._page(), path)

    def _repr_html_(self) -> str:
        return self._notebook()


def notebook_view(headline: str, *parts: Markup) -> Markup:
    """Return a notebook's view: a line, and parts below it.

    Args:
        headline: The line; :class:`Markup` unchanged, other text escaped.
        *parts: What follows.
    """
    return element("div", element("p", headline), *parts)


def folded(summary: str, content: Markup) -> Markup:
    """Return content that opens by a click on its summary.

    Args:
        summary: The line that is always shown.
        content: The rest.
    """
    return element("details", element("summary", summary), content)
