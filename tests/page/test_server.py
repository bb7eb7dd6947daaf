"""The server of pages: on this machine only, and nothing outside its folder."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from binarize.errors import BinarizeError
from binarize.page import Live, Section, document, element, live_state, served_policy
from binarize.page.server import Answer, PageServer, file_answer, open_server

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "run"
    (inside / "pictures").mkdir(parents=True)
    (inside / "pictures" / "1.png").write_bytes(PNG)
    (inside / "metrics.json").write_text("{}")
    (inside / "last.pt").write_text("weights")
    (inside / ".hidden.json").write_text("secret")
    (tmp_path / "secret.json").write_text("secret")
    (tmp_path / "run-other").mkdir()
    (tmp_path / "run-other" / "secret.json").write_text("secret")
    (inside / "link.json").symlink_to(tmp_path / "secret.json")
    (inside / "up").symlink_to(tmp_path)
    (inside / "inner.json").symlink_to(inside / "metrics.json")
    (inside / "loop.json").symlink_to(inside / "loop.json")
    return inside


@pytest.fixture
def server(folder: Path) -> Iterator[PageServer]:
    def site(path: str, query: dict[str, str]) -> Answer | None:
        if path == "":
            return Answer(f"page {query}".encode())
        return file_answer(folder, path.removeprefix("files/"))

    made = open_server(0, site)
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def ask(
    server: PageServer, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body; the path goes out as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection._validate_path = lambda url: None  # type: ignore[attr-defined]
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        ("/", "text/html; charset=utf-8", b"page {}"),
        ("/?since=a%20b", "text/html; charset=utf-8", b"page {'since': 'a b'}"),
        ("/files/pictures/1.png", "image/png", PNG),
        ("/files/metrics.json", "application/json", b"{}"),
        ("/files/inner.json", "application/json", b"{}"),  # a link that stays inside
    ],
)
def test_what_is_served(server: PageServer, path: str, kind: str, body: bytes) -> None:
    status, headers, got = ask(server, path)
    assert (status, headers["Content-Type"], got) == (200, kind, body)
    assert headers["Content-Length"] == str(len(body))
    assert headers["Content-Security-Policy"] == served_policy()
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Python" not in headers["Server"]
    status, headers, got = ask(server, path, "HEAD")
    assert (status, headers["Content-Type"], got) == (200, kind, b"")
    assert headers["Content-Length"] == str(len(body))


def test_nothing_outside_the_folder(server: PageServer, folder: Path) -> None:
    secret = folder.parent / "secret.json"
    ways = [
        "../secret.json",
        "pictures/../../secret.json",
        "..%2fsecret.json",
        "%2e%2e/secret.json",
        "%2e%2e%2fsecret.json",
        "%252e%252e%252fsecret.json",
        "..%5csecret.json",
        "..\\secret.json",
        "../run-other/secret.json",
        "%2e%2e%c0%afsecret.json",
        "./../secret.json",
        "/../secret.json",
        str(secret),
        f"/{secret}",
        quote(str(secret), safe=""),
        f"file://{secret}",
        "link.json",
        "up/secret.json",
        "up/run-other/secret.json",
        "loop.json",
        ".hidden.json",
        "%2ehidden.json",
        "metrics.json/",
        "metrics.json%00.png",
        "pictures",
        "",
        "last.pt",
        "missing.json",
        "x" * 5000 + ".json",
    ]
    for way in ways:
        for path in (f"/files/{way}", f"/{way}" if way else "/files"):
            status, _, body = ask(server, path)
            assert status in (400, 404), path
            assert b"secret" not in body, path
            assert b"weights" not in body
    for name in (*ways, "C:secret.json"):
        assert file_answer(folder, name) is None, name


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:{port}", True),
        ("localhost:{port}", True),
        ("LocalHost", True),
        ("127.0.0.1", True),
        ("evil.example", False),
        ("evil.example:{port}", False),
        ("127.0.0.1.evil.example:{port}", False),
        ("localhost.evil.example", False),
        ("127.0.0.1:1", False),
        ("localhost:", False),
        ("[::1]:{port}", False),
        ("localhost@evil.example", False),
    ],
)
def test_only_names_of_this_machine(server: PageServer, host: str, allowed: bool) -> None:
    status, headers, body = ask(server, "/", host=host.format(port=server.server_port))
    assert status == (200 if allowed else 403)
    assert headers["Content-Security-Policy"] == served_policy()
    assert (b"page" in body.split()) == allowed


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 403),  # without Host
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
    ],
)
def test_requests_that_no_browser_makes(server: PageServer, request_: bytes, status: int) -> None:
    with socket.create_connection(server.server_address[:2], timeout=30) as connection:
        connection.sendall(request_)
        connection.shutdown(socket.SHUT_WR)
        got = b""
        while part := connection.recv(4096):
            got += part
    assert str(status).encode() in got.splitlines()[0]
    assert b"<" not in got


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_only_reading(server: PageServer, method: str) -> None:
    status, headers, _ = ask(server, "/", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_only_on_this_machine(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/"


def test_ports_that_cannot_be_used(server: PageServer) -> None:
    port = server.server_port
    told = rf"port={port}: cannot be used \(address already in use\); choose another port, or omit"
    with pytest.raises(BinarizeError, match=told):
        open_server(port, server.site)
    for wrong in (-1, 65536):
        with pytest.raises(BinarizeError, match=rf"port={wrong}: must be from 0 to 65535; use e"):
            open_server(wrong, server.site)


def test_a_live_page_and_its_state() -> None:
    sections = [Section("a", "A <b>", element("p", "one & two"))]
    page = document("Title", "summary", sections, Live("v1", 2.0))
    assert 'data-version="v1" data-seconds="2.0"' in page
    assert "connect-src &#x27;self&#x27;" in page
    assert "connect-src" not in document("Title", "summary", sections).partition("<style")[0]
    assert live_state("Title", "summary", sections, "v1", "v1") == {
        "title": "Title",
        "summary": "summary",
        "version": "v1",
    }
    state = live_state("Title", "summary", sections, "v2", "v1")
    assert state["nav"] == '<a href="#a">A &lt;b&gt;</a>'
    assert state["main"] == '<section id="a"><h2>A &lt;b&gt;</h2><p>one &amp; two</p></section>'
    assert state["main"] in page
