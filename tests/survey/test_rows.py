"""Rows, their shares, their summary, their record on disk, and the document made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from binarize.errors import FileError
from binarize.survey import Case, Records, Row, summarize, write_document
from binarize.survey.row import CONVERTED, FAILED, NOTHING, ORIGINAL

VECTOR = {"roles": ["gate", "vector"], "reason": "one", "layers": 2, "weights": 100, "dense": 100}


def row(name: str, **given: object) -> Row:
    return Row(f"timm:{name}", "timm", "family", name, **given)  # type: ignore[arg-type]


def good(name: str, **given: object) -> Row:
    """1000 parameters, 100 gone; 850 in convolutions, 100 of them on one position; 700 binary."""
    numbers = {
        "params": 1000,
        "gone": 100,
        "binary": 730,
        "dense": 850,
        "dense_binary": 700,
        "single": 100,
        "kept": [VECTOR],
        "size": [64, 64],
        "other_size": [33, 65],
        "checks": {"forward": "ok", "reload": "ok", "train": "ok"},
    }
    return row(name, status=CONVERTED, **{**numbers, **given})


def test_shares_leave_out_what_is_gone() -> None:
    one = good("a")
    assert one.share == 730 / 900
    assert one.dense_share == 700 / 850
    assert one.map_share == 700 / 750
    assert one.convolutional
    assert not good("a", dense=450).convolutional
    assert good("a", dense=451).convolutional
    # Nothing to divide by.
    assert row("b").share == row("b").dense_share == row("b").map_share == 0.0


def test_rows_survive_plain_data() -> None:
    for one in (good("a"), row("b", status=FAILED, cause="why")):
        assert Row.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_summary_counts_each_network_once() -> None:
    rows = [
        good("a", dense_binary=850, single=0),
        good("b", dense_binary=745),
        good("c", checks={"forward": "ok", "train": "no gradient"}),
        good("d", dense=10, dense_binary=10),
        row("e", status=NOTHING),
        row("f", status=ORIGINAL, cause="its own"),
    ]
    summary = summarize(rows, 9)
    assert (summary.networks, summary.planned) == (6, 9)
    assert (summary.converted, summary.nothing, summary.original, summary.failed) == (4, 1, 1, 0)
    assert summary.checks == 1
    assert summary.convolutional == 3
    assert (summary.target, summary.target_on_maps) == (1, 2)
    assert summary.failures == [{"network": "timm:c", "check": "train", "cause": "no gradient"}]
    assert (summary.families, summary.families_converted) == (1, 0)
    assert summarize(rows[:2], 2).families_converted == 1


def test_a_network_of_convolutions_with_nothing_to_do_counts_against_its_family() -> None:
    assert summarize([good("a"), row("e", status=NOTHING)], 2).families_converted == 1
    lost = row("e", status=NOTHING, params=10, dense=9)
    assert summarize([good("a"), lost], 2).families_converted == 0


def test_the_document_names_what_fails_first(tmp_path: Path) -> None:
    rows = [
        good("net_a"),
        good("net_b", checks={"forward": "gives another shape"}),
        row("net_c", status=FAILED, cause="it | broke"),
        row("net_d", status=ORIGINAL, cause="its own mistake"),
    ]
    write_document(tmp_path / "c.md", rows, 5, "binarize coverage")
    text = (tmp_path / "c.md").read_text(encoding="utf-8")
    assert "Unfinished: 4 of 5" in text
    failures = text.partition("### Failures")[2].partition("##")[0]
    assert "`timm:net_b`, forward: gives another shape" in failures
    assert "`timm:net_c`, convert: it | broke" in failures
    assert "net_a" not in failures
    assert "its own mistake" in text
    head, line = (
        [cell.strip() for cell in found.split(" | ")]
        for found in text.splitlines()
        if found.startswith(("| network |", "| `net_a`"))
    )
    assert len(head) == len(line)
    cells = dict(zip(head, line, strict=True))
    assert cells["of convolutions"] == "82.4%"
    assert cells["checks"] == "all 33×65"
    assert "gate 2 (100)" in line
    # A table's lines all have its columns.
    for found in text.splitlines():
        if found.startswith("| `net_"):
            assert found.count(" | ") == len(head) - 1


def test_checks_are_told_in_few_words(tmp_path: Path) -> None:
    done = {"forward": "ok", "train": "ok", "reload": "ok"}
    rows = [
        good("real", checks={**done, "real": "ok"}),
        good("still", other_size=[]),
        good("light", checks={"forward": "ok"}, light=True),
        good("wrong", checks={**done, "train": "no gradient"}),
    ]
    write_document(tmp_path / "c.md", rows, 4, "binarize coverage")
    text = (tmp_path / "c.md").read_text(encoding="utf-8")
    cells = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            name, *rest = line.strip("| ").split(" | ")
            cells[name.strip("`")] = rest[5]
    assert cells == {
        "real": "all, real 33×65",
        "still": "all one size",
        "light": "forward",
        "wrong": "**train fails**, forward, reload 33×65",
    }


def test_a_finished_document_does_not_say_otherwise(tmp_path: Path) -> None:
    write_document(tmp_path / "c.md", [good("a")], 1, "binarize coverage")
    text = (tmp_path / "c.md").read_text(encoding="utf-8")
    assert "Unfinished" not in text
    assert "None." in text.partition("### Failures")[2]


def cases(*names: str) -> list[Case]:
    return [Case("timm", "family", name) for name in names]


def test_a_survey_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    first = Records(path)
    first.add(good("a"))
    first.add(row("b", status=FAILED, cause="why"))
    # A line that was not written to its end is done again.
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "timm:c", "lib')
    again = Records(path)
    wanted = cases("a", "b", "c")
    assert [case.name for case in again.missing(wanted)] == ["c"]
    assert again.of(wanted) == [good("a"), row("b", status=FAILED, cause="why")]
    again.add(row("c"))
    assert not Records(path).missing(wanted)


def test_a_light_row_is_done_again_where_more_is_asked_for(tmp_path: Path) -> None:
    records = Records(tmp_path / "c.jsonl")
    records.add(good("a", light=True))
    records.add(good("b"))
    wanted = cases("a", "b")
    assert [case.name for case in records.missing(wanted)] == ["a"]
    assert not records.missing(wanted, light=True)
    # One network of every family is examined in full by a light survey too.
    sample = Case("timm", "family", "a", sample=True)
    assert records.missing([sample, *wanted], light=True) == [sample]
    assert summarize(records.of(wanted), 2).light == 1


def test_other_versions_start_anew(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    Records(path).add(good("a"))
    text = path.read_text(encoding="utf-8").replace('"timm": "', '"timm": "0.')
    path.write_text(text, encoding="utf-8")
    again = Records(path)
    assert not again.rows
    again.add(good("b"))
    assert list(Records(path).rows) == ["timm:b"]


def test_a_reason_stands_once_in_the_document(tmp_path: Path) -> None:
    group = {"roles": ["prediction"], "reason": "produces the prediction", "layers": 1}
    other = {"roles": ["input"], "reason": "reads the image", "layers": 2, "weights": 9, "dense": 9}
    records = Records(tmp_path / "c.jsonl")
    records.add(good("a", kept=[{**group, "weights": 10, "dense": 0}]))
    records.add(good("b", kept=[other, {**group, "weights": 20, "dense": 7}]))
    records.add(row("c", status=FAILED, cause="why"))
    path = tmp_path / "c.json"
    records.write(path, cases("b", "c", "a"), {"networks": 3})
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["summary"] == {"networks": 3}
    assert data["reasons"] == [
        {"roles": ["input"], "reason": "reads the image"},
        {"roles": ["prediction"], "reason": "produces the prediction"},
    ]
    b, c, a = data["rows"]
    assert b["kept"] == [[0, 2, 9, 9], [1, 1, 20, 7]]
    assert a["kept"] == [[1, 1, 10, 0]]
    assert c == {**row("c", status=FAILED, cause="why").to_dict()}
    # What a stopped survey goes on from is as it was.
    assert Records(tmp_path / "c.jsonl").rows["timm:b"].kept[0] == other


@pytest.mark.parametrize(
    "text",
    ["[1]\n{}\n", '{"versions": 3}\n', '{"versions": {}}\n{"name": "x"}\n', "{nothing}\n", ""],
)
def test_a_foreign_file_is_refused_and_left_alone(text: str, tmp_path: Path, told) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FileError) as raised:
        Records(path)
    assert "not a survey record" in told(raised.value)
    assert path.read_text(encoding="utf-8") == text
