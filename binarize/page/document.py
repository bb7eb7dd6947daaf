"""Page layout (style, script, sections), and writing it to a file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from binarize.errors import FileError
from binarize.page.markup import Markup, element
from binarize.writing import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Section", "document", "figure_image", "write_page"]

# The browser then blocks every request, whatever the page contains.
_SECURITY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
)


@dataclass(frozen=True)
class Section:
    """A part of a page with its own heading.

    Attributes:
        id: Its anchor within the page.
        title: Its heading.
        content: Its content.
    """

    id: str
    title: str
    content: Markup


def document(title: str, summary: str, sections: Sequence[Section]) -> str:
    """Build a whole page.

    Args:
        title: The page's title.
        summary: A sentence below it.
        sections: The parts, in order; a navigation bar links to each.
    """
    links = (element("a", section.title, href=f"#{section.id}") for section in sections)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_SECURITY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(_asset("page.css"))),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("p", summary)),
        element("nav", *links, aria_label="Sections"),
        element(
            "main",
            *(element("section", element("h2", s.title), s.content, id=s.id) for s in sections),
        ),
        element("script", Markup(_asset("page.js"))),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def figure_image(figure: Figure, title: str) -> Markup:
    """Embed a figure as an image.

    Args:
        figure: The figure.
        title: Alternative text.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return element("img", src=f"data:image/png;base64,{data}", alt=title)


def write_page(text: str, path: str | Path) -> Path:
    """Write a page atomically.

    Args:
        text: The page.
        path: The file; an existing one is replaced.

    Returns:
        The file.

    Raises:
        FileError: It cannot be written.
    """
    path = Path(path)
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileError(
            "path",
            str(path),
            f"cannot be written ({error.strerror or error})",
            "choose a file name in a writable folder",
        ) from error
    return path


def _asset(name: str) -> str:
    return files("binarize.page").joinpath(name).read_text(encoding="utf-8")
