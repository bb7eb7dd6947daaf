"""``binarize coverage`` on a folder with two small networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from binarize.survey import Records, Row

NETS = """
from torch import nn

def make_net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
    )

def make_nothing():
    raise RuntimeError("not today")
"""


def test_networks_of_a_folder(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets").mkdir()
    Path("nets/mine.py").write_text(NETS, encoding="utf-8")
    answer = run("coverage", "--wild", "nets", "-o", "c.md", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["summary"]["networks"] == 2
    assert answer.json["summary"]["converted"] == 1
    assert answer.json["summary"]["original"] == 1
    assert answer.json["summary"]["real"] == 1
    text = Path("c.md").read_text(encoding="utf-8")
    assert "binarize coverage --wild nets" in text
    assert "the networks in a folder" in text
    assert "| wild | 2 | 1 | 0 | 1 |" in text
    assert "not today" in text
    rows = json.loads(Path("c.json").read_text(encoding="utf-8"))["rows"]
    assert rows[0]["key"] == "wild:nets/mine.py:make_net"
    assert rows[0]["checks"] == dict.fromkeys(("forward", "train", "reload", "real"), "ok")
    # A finished survey leaves nothing to go on with.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.json", "c.md", "nets"]


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with networks in ``nets``."""
    monkeypatch.chdir(tmp_path)
    Path("nets").mkdir()
    Path("nets/mine.py").write_text(NETS, encoding="utf-8")
    return tmp_path


def test_names_only(run, nets: Path) -> None:
    listed = run("coverage", "--wild", "nets/mine.py:make_net", "--list")
    assert listed.out.splitlines()[-1] == "wild:nets/mine.py:make_net"
    answer = run("coverage", "--wild", "nets", "*nothing", "--list", "--json")
    assert answer.json == ["wild:nets/mine.py:make_nothing"]
    assert [path.name for path in nets.iterdir()] == ["nets"]


def test_no_time_writes_what_there_is(run, nets: Path) -> None:
    assert run("coverage", "--wild", "nets", "-o", "none.md", "--minutes", 0).code == 0
    assert "Unfinished: 0 of 2" in Path("none.md").read_text(encoding="utf-8")


def test_a_finished_part_leaves_the_record_of_the_rest(run, nets: Path) -> None:
    records = Records(nets / "few.partial.jsonl")
    for name in ("make_net", "make_nothing"):
        name = f"nets/mine.py:{name}"
        records.add(Row(f"wild:{name}", "wild", "mine.py", name, status="converted"))
    words = ("coverage", "--wild", "nets", "-o", "few.md")
    assert run(*words, "*make_net").code == 0
    assert "`make_nothing`" not in Path("few.md").read_text(encoding="utf-8")
    assert len(Records(records.path).rows) == 2
    assert run(*words).code == 0
    assert not records.path.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--wild", "mine.py", "nothing-like-this"), "none of the"),
        (("--jobs", 0), "jobs=0: must be at least 1"),
        (("--timeout", 0), "timeout=0.0: must be at least 1"),
        (("--minutes", -1), "minutes=-1.0: must be at least 0"),
        (("-o", "missing/c.md"), "its folder does not exist"),
        (("-o", "c.json"), "is the document"),
        (
            ("--wild", "nowhere"),
            "wild='nowhere': is neither a folder nor a Python file; give FOLDER",
        ),
        (("--wild", "empty"), "wild='empty': has no factory: "),
    ],
)
def test_mistakes(words, told: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.py").write_text(NETS, encoding="utf-8")
    answer = run("coverage", *(() if "--wild" in words else ("--wild", "mine.py")), *words)
    assert answer.code == 1
    assert told in answer.err
    assert answer.err.strip().count("\n") <= 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "mine.py"]
