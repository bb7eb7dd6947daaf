"""binarize inspect: pictures or a data set in; figures, numbers and one answer out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

NET = ("demo:UNet", "--model-arg", "widths=[8,16]", "--policy", "reactnet")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(64, 48), (40, 33), (50, 50)]):
        picture = Image.linear_gradient("L").rotate(90 * number).resize(size)
        picture.convert("RGB").save(folder / f"{number}.png")
    return folder


def test_a_folder_of_pictures(run, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = ("--size", "32x24", "--limit", 2, "--output", folder)
    answer = run("inspect", *NET, "--images", photos, *words, "--json", "--quiet")
    assert answer.code == 0, answer.err
    told = answer.json
    assert (told["policy"], told["batches"]) == ("reactnet", 2)
    assert told["pictures"] == ["0.png", "1.png"]
    assert {Path(name).name for name in told["files"]} == {p.name for p in folder.iterdir()}
    assert "entropy.png" in {p.name for p in folder.iterdir()}
    assert set(told["layers"][0]["parameters"]) == {"b"}
    assert [kept["shape"] for kept in told["maps"]] == [[6, 8]] * 2  # at a quarter


def test_a_data_set_and_another_layer(run, tmp_path: Path) -> None:
    data = ("--data", "scenes", "--count", 8, "--limit", 1, "--size", "32x24")
    words = (*NET, *data, "--output", tmp_path / "out")
    answer = run("inspect", *words, "--layer", "none")
    assert answer.code == 1
    assert "layer='none': no binary layer has that name; use one of " in answer.err
    assert not (tmp_path / "out").exists()
    name = answer.err.partition("use one of ")[2].split(",")[1].strip()
    answer = run("inspect", *words, "--layer", name)
    assert answer.code == 0, answer.err
    assert "Entropy" in answer.out
    assert f"written: {tmp_path}/out/inspection.json, " in answer.out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--images {photos}/empty", "images='.*empty': the folder has no images; check the path"),
        ("--images {photos}/none", "images='.*none': no such file or folder"),
        ("", "--images: give either images or a data set, not both"),
        ("--images {photos} --data scenes", "images=.*photos.*, not both"),
        ("--images {photos} --limit 0", "limit=0: must be at least 1"),
        ("--images {photos} --maps -1", "maps=-1: must be at least 0"),
        (
            "--images {photos} --output {photos}/0.png/x",
            "output='.*': .*0.png is a file",
        ),
        ("--images {photos} --policy none-such", "none-such"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    run, photos: Path, tmp_path: Path, words: str, text: str
) -> None:
    (photos / "empty").mkdir()
    before = {*tmp_path.rglob("*")}
    given = words.format(photos=photos).split()
    answer = run(
        "inspect", *NET, "--size", "32x24", "--output", tmp_path / "out", *given, "--quiet"
    )
    assert answer.code == 1, answer.err
    assert answer.out == ""
    assert len(answer.err.splitlines()) == 1
    assert re.search(text, answer.err), answer.err
    assert {*tmp_path.rglob("*")} == before


def test_a_float_network_is_refused(run, photos: Path, tmp_path: Path) -> None:
    answer = run(
        "inspect", *NET[:3], "--images", photos, "--size", "32x24", "--output", tmp_path / "out"
    )
    assert answer.code == 1
    assert "it has no binary layer; convert it first" in answer.err
    assert not (tmp_path / "out").exists()
