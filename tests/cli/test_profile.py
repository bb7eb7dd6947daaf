"""``binarize profile``, and budgets of latency that read what it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_a_profile_and_a_budget_of_it(run: Any, float_run: Path, tmp_path: Path) -> None:
    file, path = float_run / "float.safetensors", tmp_path / "profile.json"
    answer = run("profile", file, "--policy", "deploy", "--rounds", 1, "--threads", 1, "-o", path,
                 "--json", "--quiet")  # fmt: skip
    assert answer.code == 0, answer.err
    made = answer.json
    assert made == json.loads(path.read_text())
    assert made["inputs"] == "1×3×24×32"  # what it was trained on
    assert made["machine"]["threads"] == 1
    # Made-up numbers: 8 bits are all that can be afforded for one layer.
    open_ = [row for row in made["layers"] if row["planned"] == "binarize"]
    for row in made["layers"]:
        row["milliseconds"] = {a: {"keep": 9.0}.get(a, 1.0) for a in row["milliseconds"]}
    for row in open_:
        row["milliseconds"]["int8"] = 2.0
    made["rest"] = 0.0
    path.write_text(json.dumps(made))
    total = sum(row["milliseconds"][row["planned"]] for row in made["layers"])
    sensitivity = tmp_path / "sensitivity"
    data = ("--data", "scenes", "--count", 8, "--limit", 2, "--recalibrate", 1)
    answer = run("sensitivity", file, *data, "--policy", "deploy", "--more-bits", "int8",
                 "--output", sensitivity)  # fmt: skip
    assert answer.code == 0, answer.err
    convert = ("convert", file, "--policy", "deploy", "--plan-only", "--json", "--quiet",
               "--more-bits", "int8", "--size", "32x24", "--profile", path,
               "--sensitivity", sensitivity / "sensitivity.json")  # fmt: skip
    answer = run(*convert, "--budget", f"{total + 1.5}ms")
    assert answer.code == 0, answer.err
    actions = [row["action"] for row in answer.json["decisions"] if row["part"] == "layer"]
    before = [row["planned"] for row in made["layers"]]
    assert actions.count("int8") == before.count("int8") + 1
    reasons = [row["reason"] for row in answer.json["decisions"]]
    assert any(r.startswith("8 bits by the budget of") and "1.000 ms more" in r for r in reasons)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--rounds", 0), "rounds=0: must be at least 1"),
        (("--threads", 0), "threads=0: must be at least 1"),
        (("-o", "missing/profile.json"), "its folder does not exist"),
        (("--policy", "depoly"), "did you mean 'deploy'"),
    ],
)
def test_mistakes(run: Any, float_run: Path, words: tuple[object, ...], text: str) -> None:
    answer = run("profile", float_run / "float.safetensors", *words)
    assert answer.code == 1
    assert text in answer.err
