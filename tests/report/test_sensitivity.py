"""The numbers of a sensitivity as data, text and files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from PIL import Image

from binarize.errors import FileError
from binarize.report import Sensitivity, SiteSensitivity


def row(site: str, distance: float, drop: float | None = None) -> SiteSensitivity:
    return SiteSensitivity(
        site, "Conv2d", (8, 4, 3, 3), "binarize", 0.5, drop, None, distance, 0.01, 0.1
    )


def result(*rows: SiteSensitivity, metric: str | None = "mIoU") -> Sensitivity:
    return Sensitivity(
        "Net", "bidense", "alone", False, metric, 0.6, None, None, None, 8, 16, 4, rows
    )


ROWS = (row("a", 0.1, 0.02), row("b", 0.3, 0.01), row("c", math.nan), row("d$x", -0.01, 0.0))


def test_ranks() -> None:
    made = result(*ROWS)
    assert [r.site for r in made.ranked()] == ["c", "b", "a", "d$x"]
    assert [r.site for r in made.ranked("drop")] == ["c", "a", "b", "d$x"]
    assert made.sites[0].weights == 288


def test_there_and_back(tmp_path: Path) -> None:
    made = result(*ROWS)
    files = made.save(tmp_path / "new")
    assert [path.name for path in files] == ["sensitivity.json", "sensitivity.png"]
    again = Sensitivity.load(files[0])
    assert math.isnan(again.sites[2].distance)
    assert replace(again, sites=()) == replace(made, sites=())
    assert [r for r in again.sites if r.site != "c"] == [r for r in ROWS if r.site != "c"]
    assert json.loads(files[0].read_text())["sites"][2]["distance"] is None
    with Image.open(files[1]) as picture:
        assert picture.width > 300


def test_more_bits_there_and_back(tmp_path: Path) -> None:
    losses = {"distance": math.nan, "disagreement": 0.1, "drop": None}
    rows = (replace(ROWS[0], more={"lqnet": losses}), ROWS[1])
    made = result(*rows)
    assert made.more == ("lqnet",)
    (again, plain) = Sensitivity.load(made.save(tmp_path)[0]).sites
    assert plain == ROWS[1]
    assert math.isnan(again.more["lqnet"].pop("distance"))
    assert again.more == {"lqnet": {"disagreement": 0.1, "drop": None}}
    assert "more" not in result(*ROWS).to_dict()["sites"][0]  # as files were before
    lines = str(made).splitlines()
    assert lines[1].split()[-1] == "lqnet"
    assert [line.split()[-1] for line in lines[2:]] == ["-", "nan"]


@pytest.mark.parametrize("rows", [(), ROWS, ROWS * 30])
def test_a_figure_of_any_length(rows: tuple[SiteSensitivity, ...], tmp_path: Path) -> None:
    for metric in (None, "mIoU"):
        result(*rows, metric=metric).save(tmp_path)


def test_names_in_a_figure_keep_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels: list[str] = []
    monkeypatch.setattr(Axes, "set_yticks", lambda axes, places, names: labels.extend(names))
    sites = ("", "stem", "d$x", "a" * 40, "encoder." * 5 + "last.conv2")
    result(*(row(site, 0.1) for site in sites)).save(tmp_path)
    assert labels[:4] == ["(root)", "stem", r"d\$x", "a" * 40]
    assert len(labels[4]) == 40
    assert labels[4].startswith("…")
    assert labels[4].endswith("encoder.last.conv2")


def test_the_text_says_what_was_measured() -> None:
    lines = str(result(*ROWS[:3])).splitlines()
    assert lines[0] == (
        "Net, bidense, not trained: the layer is binary, all others are float; 8 images, norms "
        "from 16; mIoU of the float network 0.6000; only 3 of 4 layers so far"
    )
    assert lines[2].split() == ["c", "binarize", "nan", "0.0100", "0.1000", "-", "-"]
    assert [line.split()[0] for line in lines[2:]] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("text", "cause"),
    [(None, "cannot be read"), ("[]", "is not the result"), ("{", "is not the result")],
)
def test_what_is_no_result(text: str | None, cause: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(FileError, match=f"sensitivity=.*{cause}.*; give the sensitivity.json"):
        Sensitivity.load(path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        result(*ROWS).save(tmp_path / "file" / "x")
