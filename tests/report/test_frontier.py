"""Frontiers: which points are dominated, which to take, and their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import binarize
from binarize.errors import BinarizeError, FileError
from binarize.report import Frontier, Point


def point(name: str, kind: str, value: float, ms: float, size: int) -> Point:
    return Point(name, kind, {"test": value}, (ms / 1e3, ms / 1e3 + 1, 0.0), size, f"{name}.x")


POINTS = (
    point("float", "float", 0.50, 100, 1000),
    point("int8", "float", 0.50, 40, 250),
    point("bits", "binarized", 0.40, 15, 40),
    point("mixed", "binarized", 0.495, 25, 80),
    point("slow", "binarized", 0.495, 30, 80),
    point("narrow", "rival", 0.40, 15, 41),
    point("twin", "rival", 0.40, 15, 40),
)
FRONTIER = Frontier("net", "mIoU", True, "1×3×8×8", "a machine", POINTS)


def named(name: str) -> Point:
    return next(p for p in FRONTIER.points if p.name == name)


def test_domination() -> None:
    found = {p.name: FRONTIER.dominated_by(p) for p in POINTS}
    names = {name: other and other.name for name, other in found.items()}
    assert names == {
        "float": "int8",
        "int8": None,
        "bits": None,
        "mixed": None,
        "slow": "mixed",
        "narrow": "bits",  # one byte
        "twin": None,  # equal in all three
    }


def test_domination_where_less_is_better() -> None:
    rows = (point("float", "float", 0.2, 10, 10), point("a", "binarized", 0.1, 10, 10))
    lower = Frontier("net", "RMSE", False, "", "", rows)
    assert lower.dominated_by(rows[0]) is rows[1]
    assert lower.dominated_by(rows[1]) is None
    assert lower.lost(rows[1]) == pytest.approx(-0.1)


def test_the_fastest_that_loses_little() -> None:
    assert FRONTIER.best(0.01).name == "mixed"
    assert FRONTIER.best(0.1).name == "bits"
    assert FRONTIER.best(0.0051).name == "mixed"
    with pytest.raises(BinarizeError) as caught:
        FRONTIER.best(0.001)
    assert str(caught.value) == (
        "lost=0.001: every network loses more; mixed loses 0.0050; allow more, train longer, or "
        "give larger budgets"
    )
    alone = replace(FRONTIER, points=POINTS[:2])
    with pytest.raises(BinarizeError, match="every network loses more; allow more"):
        alone.best(1.0)


def test_the_split_that_all_have() -> None:
    assert FRONTIER.split == "test"
    other = replace(POINTS[2], metrics={"val": 0.3})
    rows = tuple(replace(p, metrics={"val": 0.4, **p.metrics}) for p in POINTS[:2])
    mixed = replace(FRONTIER, points=(*rows, other))
    assert mixed.split == "val"
    assert mixed.lost(other) == pytest.approx(0.1)


def test_the_table() -> None:
    head, *rows = FRONTIER.rows()
    assert head == ("Network", "mIoU, test", "ms", "faster", "MB", "smaller", "dominated by")
    assert rows[3] == ("mixed", "0.4950", "25.00", "4.00×", "0.000", "12.5×", "")
    text = str(FRONTIER)
    assert text.splitlines()[0] == "net, 1×3×8×8; a machine"
    assert "for at most 0.01 lost: mixed (mixed.x), which loses 0.0050" in text
    assert "for at most 0.03 lost: mixed (mixed.x), which loses 0.0050" in text
    assert "for at most 0.0001 lost: none; every network loses more" in FRONTIER.advice([0.0001])


def test_files(tmp_path: Path) -> None:
    assert FRONTIER.save(tmp_path) == ["frontier.json", "frontier.png", "frontier.html"]
    assert binarize.Frontier.load(tmp_path / "frontier.json") == FRONTIER
    with Image.open(tmp_path / "frontier.png") as picture:
        assert picture.size[0] > 600
    assert len(list(tmp_path.iterdir())) == 3
    page = FRONTIER.to_html(tmp_path / "page.html").read_text("utf-8")
    assert page == (tmp_path / "frontier.html").read_text("utf-8")
    (tmp_path / "frontier.json").write_text('{"format": "other"}')
    with pytest.raises(FileError, match="is not a readable frontier"):
        Frontier.load(tmp_path / "frontier.json")
    with pytest.raises(FileError, match="cannot be written to"):
        FRONTIER.save(tmp_path / "missing")
