"""A full disk, a folder that refuses, an interruption: one line, and nothing half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(os.name == "nt", reason="limits and signals of POSIX")

BINARIZE = [sys.executable, "-W", "ignore", "-m", "binarize"]
COMMANDS = {
    "convert": ("demo:UNet", "--classes", "2", "-o", "{out}/a.safetensors"),
    "pack": ("{file}", "-o", "{out}/a.packed"),
    "export": ("{file}", "-o", "{out}/a.onnx"),
    "predict": ("{file}", "{photos}", "--output", "{out}"),
    "coverage": ("--wild", "{photos}/../nets.py", "-o", "{out}/a.md"),
}


def start(words: list[str], limit: int | None = None) -> subprocess.Popen[str]:
    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit is not None:
            import resource

            # No file may grow beyond it: writing ends as it does on a full disk.
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [*BINARIZE, *words, "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "0.png")
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))\n"
    )
    return folder


def words_of(command: str, **places: Path) -> list[str]:
    return [command, *(word.format(**places) for word in COMMANDS[command])]


def check(err: str) -> None:
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert "written" in line or "made" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(command: str, binary_run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.safetensors").write_text("old")
    words = words_of(command, file=binary_run / "binary.safetensors", photos=photos, out=out)
    process = start(words, 50)
    stdout, err = process.communicate(timeout=170)
    assert process.returncode == 1, err
    assert stdout == ""
    check(err)
    left = {path.name: path.read_bytes() for path in out.iterdir()}
    assert left.pop("a.safetensors") == b"old"
    left.pop("a.partial.jsonl", None)  # where a survey goes on
    assert left == {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_refuses(command: str, run, binary_run: Path, photos: Path) -> None:
    # /proc is a folder in which nobody can make a file.
    out = Path("/proc")
    words = words_of(command, file=binary_run / "binary.safetensors", photos=photos, out=out)
    answer = run(*words, "--quiet")
    assert answer.code == 1, answer.err
    assert answer.out == ""
    check(answer.err)


def test_an_interrupted_prediction_leaves_whole_files(
    binary_run: Path, photos: Path, tmp_path: Path
) -> None:
    for number in range(1, 3000):
        (photos / f"{number}.png").hardlink_to(photos / "0.png")
    out = tmp_path / "out"
    process = start(["predict", str(binary_run / "binary.safetensors"), str(photos), "--output",
                     str(out)])  # fmt: skip
    deadline = time.monotonic() + 120
    while not out.exists() or len(list(out.iterdir())) < 3:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "interrupted"
    for path in out.iterdir():
        assert not path.name.endswith(".part")
        with Image.open(path) as image:
            image.load()
