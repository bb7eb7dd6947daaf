"""Serve pages to browsers on this machine, and to nobody else.

The server listens on the loopback interface only, answers only GET and HEAD, and only requests that
name it as ``127.0.0.1`` or ``localhost``: a foreign page whose name was rebound to this address
cannot read anything.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from binarize.errors import BinarizeError
from binarize.page.document import served_policy

__all__ = ["Answer", "PageServer", "Site", "file_answer", "open_server"]

_HOST = "127.0.0.1"
_NAMES = (_HOST, "localhost")
_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".jpg": "image/jpeg",
    ".json": "application/json",
    ".png": "image/png",
}


@dataclass(frozen=True)
class Answer:
    """What is sent to the browser.

    Attributes:
        body: The content.
        kind: Its media type.
    """

    body: bytes
    kind: str = "text/html; charset=utf-8"


Site = Callable[[str, dict[str, str]], "Answer | None"]
"""(path after the leading slash, query) → the answer; None if there is nothing of that name."""


class PageServer(ThreadingHTTPServer):
    """A server of one site on a loopback port; ``address`` is what to open in a browser."""

    daemon_threads = True

    def __init__(self, port: int, site: Site) -> None:
        super().__init__((_HOST, port), _Handler)
        self.site = site

    @property
    def address(self) -> str:
        """The site's URL."""
        return f"http://{_HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore browsers that hang up; report everything else."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def open_server(port: int, site: Site) -> PageServer:
    """Open a server; ``serve_forever`` runs it.

    Args:
        port: The port; 0 takes any free one.
        site: Answers the requests, several at a time.

    Raises:
        BinarizeError: The port is not a port, is taken, or may not be used.
    """
    if not 0 <= port <= 65535:
        raise BinarizeError("port", port, "must be from 0 to 65535", "use e.g. 8000, or omit it")
    try:
        return PageServer(port, site)
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        remedy = "choose another port, or omit it to get a free one"
        raise BinarizeError("port", port, f"cannot be used ({cause})", remedy) from error


def file_answer(folder: Path, name: str) -> Answer | None:
    """Return a file of a folder; ``None`` unless it is inside and of a kind that pages show.

    Args:
        folder: The folder.
        name: The file's path inside, with slashes; links that lead outside are not followed.
    """
    parts = name.split("/")
    if any(part == "" or part.startswith(".") or set(part) & set("\\:\0") for part in parts):
        return None
    try:
        root = folder.resolve(strict=True)
        path = root.joinpath(*parts).resolve(strict=True)
        kind = _TYPES.get(path.suffix.lower())
        if kind is None or not path.is_relative_to(root) or not path.is_file():
            return None
        return Answer(path.read_bytes(), kind)
    except (OSError, RuntimeError):  # missing, unreadable, or a circle of links
        return None


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = 30

    def do_GET(self) -> None:
        """Answer a request."""
        if not self._is_for_us():
            self.send_error(HTTPStatus.FORBIDDEN, "only for pages of this machine")
            return
        address = urlsplit(self.path)
        if address.scheme or address.netloc or not address.path.startswith("/"):
            self.send_error(HTTPStatus.BAD_REQUEST, "not a path")
            return
        if address.path == "/favicon.ico":
            self._send(HTTPStatus.NO_CONTENT, Answer(b"", "image/x-icon"))
            return
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        answer = self.server.site(unquote(address.path, errors="replace")[1:], query)
        if answer is None:
            self.send_error(HTTPStatus.NOT_FOUND, "no such page")
        else:
            self._send(HTTPStatus.OK, answer)

    do_HEAD = do_GET

    def _reject(self) -> None:
        self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _reject

    def _is_for_us(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1:
            return False
        name, colon, port = hosts[0].strip().lower().partition(":")
        return name in _NAMES and (not colon or port == str(self.server.server_port))

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with a line of text."""
        text = f"{int(code)} {message or HTTPStatus(code).phrase}\n"
        self.close_connection = True
        self._send(code, Answer(text.encode(), "text/plain; charset=utf-8"))

    def _send(self, code: int, answer: Answer) -> None:
        self.send_response(code)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        # An SVG image has its own style, and nothing else.
        drawn = answer.kind == "image/svg+xml"
        policy = "default-src 'none'; style-src 'unsafe-inline'" if drawn else served_policy()
        self.send_header("Content-Security-Policy", policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cache-Control", "no-store")
        if code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def version_string(self) -> str:
        """Say no version of anything."""
        return "binarize"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal free for the training or the address."""
