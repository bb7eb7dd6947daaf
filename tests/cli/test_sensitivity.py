"""binarize sensitivity: a trained network and a data set in; table, figure and JSON out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from binarize.sensitivity import Study

DATA = ("--data", "scenes", "--count", 16, "--limit", 4, "--batch-size", 2, "--recalibrate", 2)


def words(folder: Path, run: Path, *more: object) -> tuple[object, ...]:
    return ("sensitivity", run / "float.safetensors", *DATA, "--output", folder, *more)


def test_a_float_network(run, float_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    answer = run(*words(folder, float_run, "--json", "--quiet"))
    assert answer.code == 0, answer.err
    told = answer.json
    assert (told["mode"], told["metric"], told["images"], told["calibration"]) == (
        *("alone", "mIoU"),
        *(4, 4),
    )
    assert told["planned"] == len(told["sites"]) == 4
    assert {p.name for p in folder.iterdir()} == {"sensitivity.json", "sensitivity.png"}
    kept = json.loads((folder / "sensitivity.json").read_text())
    assert kept == {key: value for key, value in told.items() if key != "files"}


def test_more_bits_are_measured_and_a_budget_takes_them(
    run, float_run: Path, tmp_path: Path
) -> None:
    folder, rules = tmp_path / "out", tmp_path / "mine.toml"
    more = ("--more-bits", "groupnet", "--more-bits", "cbnn")
    answer = run(*words(folder, float_run, *more))
    assert answer.code == 0, answer.err
    assert "distance, groupnet" in " ".join(answer.out.split())
    told = json.loads((folder / "sensitivity.json").read_text())
    assert all(list(row["more"]) == ["groupnet", "cbnn"] for row in told["sites"])
    convert = ("convert", float_run / "float.safetensors", "--size", "32x24", "--plan-only")
    known = ("--sensitivity", folder / "sensitivity.json", "--save-policy", rules, "--json")
    answer = run(*convert, "--budget", "14600B", *more, *known, "--quiet")
    assert answer.code == 0, answer.err
    assert any("bits of " in row["reason"] for row in answer.json["decisions"])
    assert "unit = { weight = " in rules.read_text()
    again = run(*convert, "--policy", rules, "--json", "--quiet")
    assert again.json["decisions"] == answer.json["decisions"]


def test_a_trained_binary_network(run, float_run: Path, binary_run: Path, tmp_path: Path) -> None:
    answer = run(
        *("sensitivity", binary_run / "binary.safetensors", *DATA, "--output", tmp_path / "out"),
        *("--mode", "without", "--teacher", float_run / "float.safetensors"),
    )
    assert answer.code == 0, answer.err
    assert "trained: the layer is float, all others are binary" in " ".join(answer.out.split())
    assert "mIoU lost" in answer.out


def test_goes_on_where_it_was_stopped(
    run, float_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(*words(tmp_path / "whole", float_run, "--json", "--quiet")).json
    measured: list[str] = []
    measure = Study.measure

    def stopped(self: Study, site: str) -> object:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(site)
        return measure(self, site)

    folder = tmp_path / "out"
    monkeypatch.setattr(Study, "measure", stopped)
    assert run(*words(folder, float_run)).code == 130
    partial = folder / "sensitivity.partial.jsonl"
    assert len(partial.read_text().splitlines()) == 3
    with partial.open("a") as file:
        file.write('{"site": "half a li')
    measured.append("so that the next ones count from three")
    answer = run(*words(folder, float_run, "--json"))
    assert answer.code == 0, answer.err
    assert "resuming: 2 of 4 layers are done" in answer.err
    assert len(measured) == 3 + 2
    assert answer.json["sites"] == whole["sites"]
    assert not partial.exists()


def test_stops_in_time_and_tells_what_is_missing(run, float_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for done in (1, 2):
        # No time at all is enough for one layer at first, then for those that are there.
        words_ = words(folder, float_run, "--minutes", 0 if done == 1 else 1e-9, "--json")
        answer = run(*words_)
        assert answer.code == 0, answer.err
        assert len(answer.json["sites"]) == 1
        assert answer.json["planned"] == 4
    # Rows of other settings are no use.
    answer = run(*words(folder, float_run, "--policy", "bnn", "--minutes", 0, "--json"))
    assert "going on" not in answer.err
    answer = run(*words(folder, float_run, "--policy", "bnn", "--fresh", "--json"))
    assert "going on" not in answer.err
    assert len(answer.json["sites"]) == 4


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ("--limit 0", "limit=0: must be at least 1; give a larger number"),
        ("--batch-size 0", "batch-size=0: must be at least 1"),
        ("--mode solo", "mode='solo': no such mode; use alone or without"),
        ("--policy none-such", "none-such"),
        (
            "--mode without --more-bits groupnet",
            "more_bits='groupnet': their gain for a layer is "
            "measured with all other layers in float; use mode='alone'",
        ),
        (
            "--more-bits bnn",
            "more_bits='bnn': its weights and activations have one bit each; name a "
            "multi-bit policy such as 'cbnn', 'lqnet' or 'groupnet'",
        ),
        ("--mode without --teacher {there}", "it is for a trained 1-bit network"),
        ("--keep *", "there is nothing to binarize, and so nothing to measure"),
    ],
)
def test_mistakes_are_one_line(run, float_run: Path, tmp_path: Path, more: str, text: str) -> None:
    given = more.format(there=float_run / "float.safetensors").split()
    answer = run(*words(tmp_path / "out", float_run, *given, "--quiet"))
    assert answer.code == 1, answer.err
    assert answer.out == ""
    assert len(answer.err.splitlines()) == 1
    assert text in answer.err
    assert not list((tmp_path / "out").glob("*"))
