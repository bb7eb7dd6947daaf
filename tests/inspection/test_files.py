"""What Inspection.save leaves: the same numbers as tables, pictures that open; all, or nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import binarize
from binarize.errors import FileError
from binarize.nn import BiConv1d, BiConv2d, BiConv3d, UnitSpec

PLAIN = UnitSpec(binarizer="sign", bypass=None, activation=None)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def two_layers() -> nn.Module:
    return nn.Sequential(BiConv2d(3, 5, 3, padding=1), BiConv2d(5, 2, 1, unit=PLAIN))


@pytest.fixture(scope="module")
def made() -> binarize.Inspection:
    torch.manual_seed(0)
    return binarize.inspect(two_layers(), [torch.randn(1, 3, 5, 7) for _ in range(2)])


def test_numbers_and_figures(made: binarize.Inspection, tmp_path: Path) -> None:
    picture: Tensor = torch.full((3, 9, 11), 200, dtype=torch.uint8)
    folder = tmp_path / "new" / "out"
    files = made.save(folder, [("$one.png", picture)])
    assert sorted(files) == sorted(folder.iterdir())
    assert list(folder.parent.iterdir()) == [folder]

    told = json.loads((folder / "inspection.json").read_text())
    assert told == {**json.loads(json.dumps(made.to_dict())), "pictures": ["$one.png"]}
    assert [layer["name"] for layer in told["layers"]] == ["0", "1"]

    channels = table(folder / "channels.csv")
    assert [(row["layer"], row["channel"]) for row in channels] == [
        *(("0", str(c)) for c in range(3)),
        *(("1", str(c)) for c in range(5)),
    ]
    for column, of in (("share", "share"), ("entropy", "entropy")):
        values = [v for layer in made.layers for v in getattr(layer, of)]
        assert [float(row[column]) for row in channels] == values

    parameters = table(folder / "parameters.csv")
    assert [(row["layer"], row["parameter"]) for row in parameters] == [
        *(("0", name) for name in "kkkbbba")
    ]
    rows = table(folder / "feature_maps.csv")
    assert len(rows) == 2 * 5 * 7
    assert rows[9]["position"] == "1:2"
    assert float(rows[9]["before"]) == float(made.maps[0].before[1, 2])
    for path in files:
        if path.suffix == ".png":
            with Image.open(path) as shown:
                assert np.array(shown.convert("L")).std() > 5


def test_nothing_to_show_nothing_drawn(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("parameters.png", "feature_maps.png", "mine.txt"):
        (folder / name).write_text("old")
    made = binarize.inspect(BiConv2d(2, 2, 1, unit=PLAIN), [torch.randn(1, 2, 4, 4)], maps=0)
    files = made.save(folder)
    left = {path.name for path in folder.iterdir()}
    assert left == {path.name for path in files} | {"mine.txt"}
    assert not left & {"parameters.png", "feature_maps.png"}


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (BiConv1d(2, 2, 1), torch.randn(1, 2, 9)),
        (BiConv3d(2, 2, 1), torch.randn(1, 2, 3, 4, 5)),
        (BiConv2d(2, 2, 1), torch.full((1, 2, 3, 3), torch.nan)),
    ],
    ids=["curve", "volume", "not finite"],
)
def test_unusual_maps_are_drawn(layer: nn.Module, x: Tensor, tmp_path: Path) -> None:
    files = binarize.inspect(layer, [x]).save(tmp_path)
    assert tmp_path / "feature_maps.png" in files


@pytest.mark.parametrize("exists", [False, True])
def test_an_error_leaves_nothing_half_written(
    made: binarize.Inspection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    folder = tmp_path / "out"
    if exists:
        folder.mkdir()
        (folder / "channels.csv").write_text("old")

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(FileError, match=r"folder='.*out': cannot be written \(No space left"):
        made.save(folder)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    assert left == ({"out", "out/channels.csv"} if exists else set())
    assert not exists or (folder / "channels.csv").read_text() == "old"
