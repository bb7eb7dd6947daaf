"""Page layout (style, script, sections), and writing it to a file."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.errors import FileError
from binarize.page.markup import Markup, element
from binarize.writing import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Live",
    "Section",
    "document",
    "figure_image",
    "live_state",
    "png_image",
    "served_policy",
    "write_page",
]

# The browser then blocks every request, whatever the page contains.
_SECURITY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
)
# A page that is served also fetches from its own server, and from nowhere else.
_SERVED = "img-src 'self' data:; connect-src 'self'"


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


@dataclass(frozen=True)
class Live:
    """How a served page follows what it shows.

    Attributes:
        version: Identifies its content.
        seconds: Time between two looks at ``state.json``, which :func:`live_state` makes.
    """

    version: str
    seconds: float = 3.0


def document(
    title: str, summary: str, sections: Sequence[Section], live: Live | None = None
) -> str:
    """Build a whole page.

    Args:
        title: The page's title.
        summary: A sentence below it.
        sections: The parts, in order; a navigation bar links to each.
        live: For a page that a server keeps up to date.
    """
    security, scripts = _SECURITY, [element("script", Markup(_asset("page.js")))]
    if live is not None:
        security = _SECURITY.replace("img-src data:", _SERVED)
        scripts.append(
            element(
                "script",
                Markup(_asset("live.js")),
                data_version=live.version,
                data_seconds=live.seconds,
            )
        )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=security),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Markup(_asset("page.css"))),
    )
    body = element(
        "body",
        element("header", element("h1", title), element("p", summary)),
        element("nav", *_links(sections), aria_label="Sections"),
        element("main", *_parts(sections)),
        *scripts,
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def live_state(
    title: str, summary: str, sections: Sequence[Section], version: str, since: str
) -> dict[str, Any]:
    """Build what a live page asks for, as plain data.

    Args:
        title: As for :func:`document`.
        summary: As there.
        sections: As there.
        version: Identifies this content.
        since: The version that the page shows.
    """
    state = {"title": title, "summary": summary, "version": version}
    if since == version:
        return state
    return {**state, "nav": "".join(_links(sections)), "main": "".join(_parts(sections))}


@cache
def served_policy() -> str:
    """Return the Content-Security-Policy of served pages: their own scripts, style and server."""

    def source(name: str) -> str:
        digest = hashlib.sha256(_asset(name).encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    scripts = f"script-src {source('page.js')} {source('live.js')}"
    closed = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"default-src 'none'; {scripts}; style-src {source('page.css')}; {_SERVED}; {closed}"


def _links(sections: Sequence[Section]) -> list[Markup]:
    return [element("a", section.title, href=f"#{section.id}") for section in sections]


def _parts(sections: Sequence[Section]) -> list[Markup]:
    return [element("section", element("h2", s.title), s.content, id=s.id) for s in sections]


def figure_image(figure: Figure, title: str, *, chart: bool = True) -> Markup:
    """Embed a figure as an image.

    Args:
        figure: The figure.
        title: Alternative text.
        chart: Lines and boxes on white, which a dark page shows with light and dark swapped.
            False for pictures, which stay as they are.
    """
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return png_image(file.getvalue(), title, chart=chart)


def png_image(data: bytes, title: str, *, chart: bool = False) -> Markup:
    """Embed a PNG file as an image.

    Args:
        data: The file's content.
        title: Alternative text.
        chart: See :func:`figure_image`.
    """
    text = base64.b64encode(data).decode("ascii")
    kind = "chart" if chart else None
    return element("img", src=f"data:image/png;base64,{text}", alt=title, class_=kind)


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
