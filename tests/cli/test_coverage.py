"""``binarize coverage`` on two small networks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from binarize.survey import Records, Row

NAMES = ("timm:test_resnet", "timm:test_vit")


def test_document_and_data(run, tmp_path: Path) -> None:
    path = tmp_path / "few.md"
    answer = run("coverage", *NAMES, "--light", "-o", path, "--json")
    assert answer.code == 0, answer.err
    assert answer.json["summary"]["networks"] == 2
    assert answer.json["summary"]["converted"] == 1
    assert answer.json["summary"]["nothing"] == 1
    text = path.read_text(encoding="utf-8")
    assert "| `test_resnet` |" in text
    assert "`test_vit` | nothing to binarize" in text
    data = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert [row["key"] for row in data["rows"]] == list(NAMES)
    assert data["rows"][0]["checks"] == {"forward": "ok"}
    assert "0 networks went through all checks; 1 have `forward`" in text
    # A finished survey leaves nothing to go on with.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["few.json", "few.md"]


def test_no_time_writes_what_there_is(run, tmp_path: Path) -> None:
    path = tmp_path / "none.md"
    assert run("coverage", *NAMES, "-o", path, "--minutes", 0).code == 0
    assert "Unfinished: 0 of 2" in path.read_text(encoding="utf-8")


def test_a_finished_part_leaves_the_record_of_the_rest(run, tmp_path: Path) -> None:
    records = Records(tmp_path / "few.partial.jsonl")
    for name in ("test_resnet", "resnet18"):
        records.add(Row(f"timm:{name}", "timm", "resnet", name, status="converted"))
    assert run("coverage", NAMES[0], "-o", tmp_path / "few.md").code == 0
    assert "`resnet18`" not in (tmp_path / "few.md").read_text(encoding="utf-8")
    assert set(Records(records.path).rows) == {"timm:test_resnet", "timm:resnet18"}
    assert run("coverage", NAMES[0], "timm:resnet18", "-o", tmp_path / "few.md").code == 0
    assert not records.path.exists()


def test_names_only(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = run("coverage", "smp:FPN/resnet18", "vgg", "--list")
    assert answer.code == 0
    assert "timm:vgg11\n" in answer.out
    assert "smp:FPN/resnet18\n" in answer.out
    assert not list(tmp_path.iterdir())


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
    listed = run("coverage", "--wild", "nets/mine.py:make_net", "--list")
    assert listed.out.splitlines()[-1] == "wild:nets/mine.py:make_net"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("nothing-like-this",), "none of the"),
        (("--jobs", 0), "jobs=0: must be at least 1"),
        (("--timeout", 0), "timeout=0.0: must be at least 1"),
        (("--minutes", -1), "minutes=-1.0: must be at least 0"),
        (("-o", "missing/c.md"), "its folder does not exist"),
        (("-o", "c.json"), "is the document"),
        (
            ("--wild", "nowhere"),
            "wild='nowhere': is neither a folder nor a Python file; give FOLDER",
        ),
        (("--wild", "."), "wild='.': has no factory: "),
    ],
)
def test_mistakes(words, told: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = run("coverage", *words)
    assert answer.code == 1
    assert told in answer.err
    assert answer.err.strip().count("\n") <= 1
    assert not list(tmp_path.iterdir())
