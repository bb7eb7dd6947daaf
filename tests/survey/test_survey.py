"""What happens to the process that examines a network, and which networks are selected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from binarize.errors import ModelError
from binarize.survey import Case, pool, select, survey, wild_cases
from binarize.survey.case import WILD
from binarize.survey.row import FAILED

CASE = Case(WILD, "nets.py", "nets.py:make", sample=True)


def test_a_network_that_takes_too_long_is_a_failure(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text("import time\n\ndef make():\n    time.sleep(3600)\n", encoding="utf-8")
    (case,) = wild_cases(file)
    (row,) = survey([case], timeout=0.01)
    assert (row.key, row.status) == (f"wild:{file.as_posix()}:make", FAILED)
    assert row.cause == "it took more than 0.01 s"


def test_a_process_that_dies_harms_its_network_only(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Case(WILD, "nets.py", "nets.py:make_other", sample=True)
    monkeypatch.setattr(pool, "_serve", os._exit)  # does not take what it is given, and dies
    rows = {row.key: row for row in survey([CASE, other], jobs=2, timeout=60)}
    assert set(rows) == {CASE.key, other.key}
    for row in rows.values():
        assert row.status == FAILED
        assert row.cause == "its process died (exit code 1)"


def test_selection() -> None:
    cases = [Case(WILD, f"{file}.py", f"{file}.py:make_{size}") for file in "ab" for size in "xy"]
    assert select(cases, []) == cases
    assert select(cases, ["b.py"]) == cases[2:]
    assert select(cases, ["*:make_x", "wild:a.py:make_y"]) == cases[:3]
    with pytest.raises(ModelError, match="none of the 4 networks matches it; give a name such as"):
        select(cases, ["a.py", "c.py"])
