"""``binarize bench``: what it tells, what it writes, and what a version that fails leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from binarize.bench import VERSIONS, Subject, Version
from binarize.cli.networks import Recipe, build
from binarize.file import float_contents

NET = ("demo:UNet", "--model-arg", "widths=[8,16]")
FEW = ("--rounds", 2, "--size", "32x24", "--threads", 1, "--quiet")


def broken(subject: Subject) -> object:
    raise RuntimeError("no compiler")


@pytest.fixture
def with_a_broken_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERSIONS, "broken", Version("never runs", broken, lambda subject: 1))


def test_a_network_by_name(run, tmp_path: Path) -> None:
    answer = run("bench", *NET, *FEW, "--versions", "float,packed", "--batch-size", 2,
                 "--no-memory", "--json", "-o", tmp_path / "out")  # fmt: skip
    assert answer.code == 0, answer.err
    told = answer.json
    assert told["shape"] == [2, 3, 24, 32]
    assert told["threads"] == 1
    rows = {row["name"]: row for row in told["versions"]}
    assert list(rows) == ["float", "packed"]
    for row in rows.values():
        assert len(row["seconds"]) == 2
        assert min(row["seconds"]) <= row["latency"] <= max(row["seconds"])
        assert row["quartiles"][0] <= row["latency"] <= row["quartiles"][1]
        assert row["images_per_second"] == pytest.approx(2 / row["latency"])
        assert row["failure"] is row["peak_bytes"] is None
    assert rows["float"]["speedup"] == 1
    network = build(Recipe("demo:UNet", arguments={"widths": [8, 16]}))
    assert rows["float"]["file_bytes"] == float_contents(network).size
    assert rows["packed"]["file_bytes"] < rows["float"]["file_bytes"] / 2
    assert json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8")) == told
    with Image.open(tmp_path / "out" / "bench.png") as picture:
        assert min(picture.size) > 100


def test_a_saved_network_and_its_memory(run, binary_run: Path) -> None:
    file = binary_run / "binary.safetensors"
    words = ("--rounds", 1, "--threads", 1, "--quiet", "--versions", "packed")
    answer = run("bench", file, *words, "--json")
    assert answer.code == 0, answer.err
    (row,) = answer.json["versions"]
    assert answer.json["shape"] == [1, 3, 24, 32]
    assert row["file_bytes"] == file.stat().st_size
    assert row["peak_bytes"] is None or row["peak_bytes"] >= row["idle_bytes"] > 1e6
    assert row["speedup"] is None


def test_what_a_person_sees(
    run, monkeypatch: pytest.MonkeyPatch, with_a_broken_version: None
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    answer = run("bench", *NET, *FEW, "--versions", "float,broken,packed", "--no-memory")
    assert answer.code == 0, answer.err
    lines = answer.out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split()[0] for line in lines if line]
    assert [name for name in rows if name in ("float", "broken", "packed")] == [
        "float", "broken", "packed",
    ]  # fmt: skip
    assert lines[-1] == "broken: RuntimeError: no compiler"


def test_no_version_runs(run, with_a_broken_version: None) -> None:
    answer = run("bench", *NET, *FEW, "--versions", "broken", "--no-memory")
    assert answer.code == 1
    assert "no version runs (RuntimeError: no compiler)" in answer.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--versions", "floot"), "versions='floot': no such version; did you mean 'float'"),
        (("--rounds", 0), "rounds=0: must be at least 1"),
        (("--batch-size", 0), "batch-size=0: must be at least 1"),
    ],
)
def test_mistakes(run, words: tuple[object, ...], message: str) -> None:
    answer = run("bench", *NET, *words)
    assert answer.code == 1
    assert message in answer.err
    assert answer.err.count("\n") == 1
