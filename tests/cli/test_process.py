"""The command as a process: exit codes, streams, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BINARIZE = [sys.executable, "-m", "binarize"]
TRAIN = ["train", "--model", "demo:UNet", "--model-arg", "widths=[8,16]", "--data", "scenes",
         "--size", "32x24", "--threads", "1"]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_json_is_all_there_is_on_stdout() -> None:
    done = subprocess.run(
        [*BINARIZE, "rules", "ls", "--json"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert {"bidense", "bidense-released"} <= {policy["name"] for policy in json.loads(done.stdout)}


def test_a_mistake_leaves_with_one() -> None:
    done = subprocess.run(
        [*BINARIZE, "rules", "show", "bidens"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interruption_leaves_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*BINARIZE, *TRAIN, "--epochs", "500", "--count", "8", "--output", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them ignore this signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "last.pt").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "interrupted"
    assert "--resume continues from" in err
    assert "Traceback" not in err


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_reader_that_leaves_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [*BINARIZE, "rules", "show", "bidense"],
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    assert b"Traceback" not in done.stderr
    assert b"error" not in done.stderr


def test_demo_in_seconds(tmp_path: Path) -> None:
    started = os.times().children_user
    done = subprocess.run(
        [*BINARIZE, "demo", "--quick", "--threads", "1", "--output", "here", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    # Time on the processor, so that other work on the machine does not count.
    assert os.times().children_user - started < 40
    answer = json.loads(done.stdout)
    folder = tmp_path / "here"
    assert sorted(path.name for path in folder.iterdir()) == sorted(answer["files"].values())
    assert answer["bytes"]["float"] > 10 * answer["bytes"]["binary"]
    assert answer["bytes"]["binary"] == (folder / "binary.safetensors").stat().st_size
    assert answer["ops"]["float"] > 10 * answer["ops"]["binary"]
    for step in ("1/5", "2/5", "3/5", "4/5", "5/5", "next"):
        assert step in done.stderr
    # What it leaves behind can be used right away.
    done = subprocess.run(
        [*BINARIZE, "report", "here/binary.safetensors", "--json", "--quiet"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert told["file_bytes"] == answer["bytes"]["binary"]
    assert told["ops"] == answer["ops"]["binary"]


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
def test_a_full_disk_ends_a_training_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run
) -> None:
    import resource

    from binarize.train import checkpoint

    folder = tmp_path / "run"
    words = [*TRAIN, "--epochs", "2", "--count", "8", "--policy", "none", "--output", str(folder)]
    kept = checkpoint.write_checkpoint

    def stop(path: Path, state: dict) -> None:
        kept(path, state)
        if path.name == "last.pt":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_checkpoint", stop)
        assert run(*words).code == 130
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(before) == {"last.pt", "best.pt"}

    # No file may grow beyond 20 kB: to a program that is a disk that fills up while it writes.
    full = subprocess.run(
        [*BINARIZE, *words, "--resume"],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert full.returncode == 1, full.stderr
    (told,) = (line for line in full.stderr.splitlines() if line.startswith("error: "))
    assert f"output_dir='{folder}': cannot write " in told
    assert "free some space or choose another folder" in told
    assert "Traceback" not in full.stderr
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before

    assert run(*words, "--resume").code == 0


def test_a_place_that_cannot_be_written_to(run) -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("needs a folder in which nobody can make files")
    told = run(*TRAIN, "--epochs", "1", "--count", "8", "--output", "/proc/self/run")
    assert (told.code, told.out) == (1, "")
    assert told.err.count("\n") == 1
    assert told.err.startswith("error: output='/proc/self/run': cannot be created (")
