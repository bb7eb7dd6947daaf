"""``binarize view``: pages of trainings, networks and results, and how they follow changes."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from binarize.cli.app import build_parser
from binarize.cli.output import Output
from binarize.cli.view import _open
from binarize.cli.view_run import RunView
from binarize.page.server import Answer, PageServer, open_server

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
NASTY = "<script>alert(1)</script>"


def record(epoch: int, **more: Any) -> dict[str, Any]:
    numbers = {"loss": 1.5 / epoch, "lr": 0.01, "images": 20, "seconds": 4.0, "mIoU": epoch / 10}
    return {"epoch": epoch, **numbers, **more}


def write(folder: Path, epochs: int, state: str = "running", **more: Any) -> None:
    """Write a run's history as the trainer does."""
    run = {
        "format": "binarize history",
        "task": "segmentation",
        "metric": "mIoU",
        "epochs": 8,
        "state": state,
        "best": {"epoch": epochs, "metric": "mIoU", "value": epochs / 10} if epochs else None,
        "progress": None,
        "pictures": None,
        "history": [record(n, flips={f"layer.{NASTY}": 0.01}) for n in range(1, epochs + 1)],
        **more,
    }
    temporary = folder / "history.tmp"
    temporary.write_text(json.dumps(run), encoding="utf-8")
    temporary.replace(folder / "history.json")


def text(answer: Answer | None) -> str:
    assert answer is not None
    return answer.body.decode()


def state_of(view: RunView, since: str = "") -> dict[str, Any]:
    return json.loads(text(view("state.json", {"since": since})))


def site(path: Path) -> Callable[[str, Mapping[str, str]], Answer | None]:
    return _open(build_parser().parse_args(["view", str(path)]), Output(quiet=True))


@contextmanager
def served(view: Any) -> Iterator[PageServer]:
    server = open_server(0, view)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_page_of_a_running_training(tmp_path: Path) -> None:
    within = {"epoch": 3, "step": 10, "steps": 40, "loss": 0.4, "images_per_second": 12.34,
              "seconds_left": 600.0}  # fmt: skip
    shown = {"epoch": 2, "files": ["pictures/1.png"]}
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/1.png").write_bytes(b"png")
    write(tmp_path, 2, progress=within, pictures=shown)
    view = RunView(tmp_path)
    page = text(view("", {}))
    assert (
        "training, 2 of 8 epochs done, step 10 of 40 of epoch 3, 12.3 images/s, 10 min left" in page
    )
    for words in ("28 % done", "Best mIoU", "in epoch 2", "0.75", "1.000%"):
        assert words in page
    assert html.escape(f"layer.{NASTY}") in page
    assert NASTY not in page
    assert 'src="files/pictures/1.png?epoch=2"' in page
    assert text(view("files/pictures/1.png", {})) == "png"
    assert re.findall(r'<tr><td class="number">(\d+)</td>', page) == ["2", "1"]
    for name in ("curves.svg", "curves-dark.svg"):
        answer = view(name, {})
        assert answer is not None
        assert answer.kind == "image/svg+xml"
        assert answer.body.startswith(b"<?xml")
    assert text(view("curves.svg", {})) != text(view("curves-dark.svg", {}))
    assert view("other.svg", {}) is None


def test_the_page_follows_the_training_and_survives_half_written_files(tmp_path: Path) -> None:
    write(tmp_path, 1)
    view = RunView(tmp_path)
    first = state_of(view)
    assert "1 of 8 epochs" in first["summary"]
    assert set(state_of(view, first["version"])) == {"title", "summary", "version"}
    write(tmp_path, 2)
    second = state_of(view, first["version"])
    assert "2 of 8 epochs" in second["summary"]
    assert "<td" in second["main"]
    whole = (tmp_path / "history.json").read_text()
    for broken in (whole[:100], "", "[]", "null", "\x00", '{"format": "other", "history": 3}'):
        (tmp_path / "history.json").write_text(broken)
        assert "2 of 8 epochs" in state_of(view)["summary"], broken
        assert text(view("", {}))
        assert view("curves.svg", {}) is not None
    (tmp_path / "history.json").unlink()
    assert "2 of 8 epochs" in state_of(view)["summary"]
    write(tmp_path, 3, "finished")
    assert state_of(view)["summary"] == "finished, 3 of 8 epochs"


def test_a_training_that_has_just_begun_or_gone_silent(tmp_path: Path) -> None:
    within = {"epoch": 1, "step": 1, "steps": 4, "loss": 2.5, "images_per_second": None,
              "seconds_left": None}  # fmt: skip
    write(tmp_path, 0, progress=within)
    view = RunView(tmp_path)
    page = text(view("", {}))
    assert "training, 0 of 8 epochs done, step 1 of 4 of epoch 1" in page
    assert "2.5" in page
    assert "curves.svg" not in page
    assert view("curves.svg", {}) is None
    past = time.time() - 3600
    os.utime(tmp_path / "history.json", (past, past))
    assert "nothing new for 60 min: it may have been killed" in state_of(view)["summary"]


def test_a_real_run_and_one_of_an_earlier_version(float_run: Path, tmp_path: Path) -> None:
    page = text(RunView(float_run)("", {}))
    told = json.loads((float_run / "metrics.json").read_text())
    assert "finished, 2 of 2 epochs" in page
    assert f"{told['test']['mIoU']:.4f}" in page
    assert shlex.join(told["command"]) in html.unescape(page)
    shutil.copy(float_run / "metrics.json", tmp_path)
    assert "finished, 2 of 2 epochs" in text(site(tmp_path)("", {}))
    assert "finished, 2 of 2 epochs" in text(site(tmp_path / "metrics.json")("", {}))


def test_networks_and_results(binary_run: Path, tmp_path: Path) -> None:
    from binarize.report import Frontier, Point, Sensitivity

    page = text(site(binary_run / "binary.safetensors")("", {}))
    told = json.loads((binary_run / "metrics.json").read_text())
    for words in ("1-bit by policy bidense", 'id="layer-table"', f"{told['test']['mIoU']:.4f}"):
        assert words in page
    points = (Point("float", "float", {"val": 0.5}, (0.01,), 900),)
    frontier = Frontier("Net", "mIoU", True, "1×3×8×8", "a machine", points)
    path = tmp_path / "frontier.json"
    path.write_text(json.dumps(frontier.to_dict()))
    for given in (tmp_path, path):
        assert text(site(given)("", {})) == frontier._page()
    view = site(path)
    path.write_text("{")
    assert text(view("", {})) == frontier._page()  # as it was
    other = Frontier("Other", "mIoU", True, "1×3×8×8", "a machine", points)
    path.write_text(json.dumps(other.to_dict()))
    assert text(view("", {})) == other._page()
    assert view("state.json", {}) is None
    result = Sensitivity(
        *("Net", "bidense", "alone", False, None, None, None, None, None, 4, 4, 2, ())
    )
    path.with_name("mine.json").write_text(json.dumps(result.to_dict()))
    assert text(site(path.with_name("mine.json"))("", {})) == result._page()


def test_errors_are_one_line(run, tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    write(tmp_path / "runs" / "a", 1)
    (tmp_path / "empty").mkdir()
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"history": 3, "points": 4}')
    (tmp_path / "other.json").write_text("[1]")
    (tmp_path / "cut.json").write_text("{")
    (tmp_path / "net.safetensors").write_text("no")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for words, told in (
            (["missing"], "path='missing': no such file or folder; give a folder of binarize"),
            (["empty"], "has nothing to show; give a folder of binarize train"),
            (["runs"], f"has nothing to show; give one of the runs inside, such as runs{os.sep}a"),
            (["foreign.json"], "is not a readable frontier"),
            (["other.json"], "is not a result of binarize frontier, sensitivity or inspect"),
            (["cut.json"], "path='cut.json': cannot be read"),
            (["net.safetensors"], "net.safetensors"),
            (["runs/a", "--port", port], f"port={port}: cannot be used (address already in use)"),
            (["runs/a", "--port", "70000"], "port=70000: must be from 0 to 65535"),
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path)
                answer = run("view", *words, "--quiet")
            assert (answer.code, answer.out) == (1, ""), answer.err
            (line,) = answer.err.splitlines()
            assert line.startswith("error: ")
            assert told in line


def test_it_serves_until_interrupted(tmp_path: Path) -> None:
    write(tmp_path, 2, "finished")
    process = subprocess.Popen(
        [sys.executable, "-m", "binarize", "view", str(tmp_path), "--json", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, such as this test may be run in, ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    lines = ""
    while not lines.rstrip().endswith("}"):
        lines += process.stdout.readline()
        assert process.poll() is None
    told = json.loads(lines)
    assert told["address"] == f"http://127.0.0.1:{told['port']}/"
    with urllib.request.urlopen(told["address"], timeout=30) as answer:
        assert b"finished, 2 of 8 epochs" in answer.read()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "interrupted")


def test_open_opens_a_browser(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def forever(self: PageServer) -> None:
        raise KeyboardInterrupt

    write(tmp_path, 1)
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or False)
    monkeypatch.setattr(PageServer, "serve_forever", forever)
    answer = run("view", tmp_path, "--open")
    assert answer.code == 130
    assert opened[0].startswith("http://127.0.0.1:")
    assert opened[0] in answer.out
    assert answer.err.splitlines() == ["note: there is no browser to open it in", "interrupted"]
    assert run("view", tmp_path).err.splitlines() == ["interrupted"]
    assert len(opened) == 1


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium (on Debian: apt-get install chromium)")
def test_a_browser_sees_new_epochs_without_reloading(tmp_path: Path) -> None:
    write(tmp_path, 1)
    view = RunView(tmp_path, seconds=0.2)
    asked: list[str] = []

    def follow(path: str, query: dict[str, str]) -> Answer | None:
        asked.append(path)
        if asked.count("state.json") == 2:
            write(tmp_path, 5)
        return view(path, query)

    with served(follow) as server:
        done = subprocess.run(
            [
                *(str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
                *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=4000"),
                *(f"--user-data-dir={tmp_path / 'profile'}", server.address),
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert "CONSOLE" not in done.stderr, done.stderr
    assert asked.count("") == 1
    assert asked.count("curves.svg") >= 2
    assert "training, 5 of 8 epochs done" in done.stdout
    assert len(re.findall(r'<tr><td class="number">\d</td>', done.stdout)) == 5
