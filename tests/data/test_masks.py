"""What masks mean: values, palettes, colours, several labels, depth; and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from binarize.data import DenseDataset, ImageDepthFolder, ImageMaskFolder, open_dataset
from binarize.errors import DataError
from binarize.train import Trainer

TRUTH = np.random.default_rng(0).integers(0, 2, (3, 12, 16))


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def make(root: Path, masks: list[np.ndarray] | np.ndarray, split: str = "") -> Path:
    """A folder data set with these masks."""
    for index, mask in enumerate(masks):
        photo = np.random.default_rng(index).integers(0, 256, (*mask.shape[:2], 3), dtype=np.uint8)
        save(root / split / "images" / f"{index}.png", photo)
        save(root / split / "masks" / f"{index}.png", mask)
    return root


def labels(root: Path, **options: object) -> np.ndarray:
    data = open_dataset("folder", root, **options)
    return np.stack([data[i]["mask"].numpy() for i in range(len(data))])


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [
        (0, 255, np.uint8),
        (0, 1, np.uint8),
        (38, 75, np.uint8),
        (0, 65535, np.uint16),
        (0, 128, np.uint8),
    ],
)
def test_two_values_of_any_kind_are_found(tmp_path: Path, low: int, high: int, kind: type) -> None:
    make(tmp_path, np.where(TRUTH == 1, high, low).astype(kind))
    assert (labels(tmp_path, classes=2) == TRUTH).all()
    data = open_dataset("folder", tmp_path, classes=2)
    assert isinstance(data, ImageMaskFolder)
    assert data.mask_values == (None if high == 1 else [low, high])
    assert (data.note is None) == (high == 1)
    data.check_targets()


def test_one_split_means_what_all_do(tmp_path: Path) -> None:
    """A split of 0 and 255 only: void, where another split has a 1, and else the class."""
    make(tmp_path, [np.where(TRUTH[0] == 1, 255, 0).astype(np.uint8)], "val")
    make(tmp_path, [TRUTH[1].astype(np.uint8)], "train")
    assert set(np.unique(labels(tmp_path, classes=2, split="val"))) == {0, 255}
    make(tmp_path, [np.where(TRUTH[1] == 1, 255, 0).astype(np.uint8)], "train")
    assert set(np.unique(labels(tmp_path, classes=2, split="val"))) == {0, 1}


def test_values_that_are_said(tmp_path: Path) -> None:
    shown = np.array([7, 3, 200], np.uint8)[TRUTH + (np.arange(16) == 5)]
    make(tmp_path, shown)
    wanted = TRUTH + (np.arange(16) == 5)
    assert (labels(tmp_path, classes=3, mask_values=[7, 3, 200]) == wanted).all()
    void = labels(tmp_path, classes=2, mask_values=[7, 3], mask_ignore=[200])
    assert (void == np.where(wanted == 2, 255, wanted)).all()
    with pytest.raises(
        DataError, match=r"masks='.*: \d.*%.*': hold 3 values for two classes; specify"
    ):
        open_dataset("folder", tmp_path, classes=2)
    with pytest.raises(DataError, match="label=7: .* has a label outside 3, 200 and 255"):
        labels(tmp_path, classes=2, mask_values=[3, 200])
    with pytest.raises(DataError, match="must be 3 different values, one for each class"):
        open_dataset("folder", tmp_path, classes=3, mask_values=[1, 1, 2])


def test_colours_by_the_table(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("road 128 64 128\nsky #4080ff\nvoid 0 0 0\n")
    colors = np.array([(128, 64, 128), (64, 128, 255), (0, 0, 0)], np.uint8)
    wanted = TRUTH + (np.arange(16) == 5)
    make(tmp_path, colors[wanted])
    assert (labels(tmp_path) == np.where(wanted == 2, 255, wanted)).all()
    data = open_dataset("folder", tmp_path)
    assert data.classes == ("road", "sky")
    assert data.palette == ((128, 64, 128), (64, 128, 255))
    # A palette in another order: the colours count, where classes have some.
    for index in range(3):
        Image.fromarray(colors[wanted[index]]).quantize(8).save(tmp_path / "masks" / f"{index}.png")
    assert (labels(tmp_path) == np.where(wanted == 2, 255, wanted)).all()
    colors[1] = 1, 2, 3
    make(tmp_path, colors[wanted])
    with pytest.raises(DataError, match=r"color=\(1, 2, 3\): .*no class has this colour; add it"):
        labels(tmp_path)
    (tmp_path / "classes.txt").write_text("road\nsky\n")
    with pytest.raises(DataError, match=r"this file has 3 channels; its colours are \(.*classes"):
        labels(tmp_path)
    for text, says in (
        ("road 1 2 3\nsky\n", "1 of 2 classes have a colour; give all of them a colour, or none"),
        ("road 1 2 3\nsky 1 2 3\n", "two lines have the same colour"),
        ("road 1 2 300\n", "a colour is three numbers up to 255"),
    ):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(DataError, match=re.escape(says)):
            labels(tmp_path)


def test_grey_in_three_channels_and_palettes_of_indices(tmp_path: Path) -> None:
    make(tmp_path, np.repeat(TRUTH[..., None].astype(np.uint8), 3, -1))
    assert (labels(tmp_path, classes=2) == TRUTH).all()
    for index in range(3):
        image = Image.fromarray(TRUTH[index].astype(np.uint8))
        image.putpalette([9, 9, 9, 200, 0, 0])
        image.save(tmp_path / "masks" / f"{index}.png")
    assert (labels(tmp_path, classes=2) == TRUTH).all()
    (tmp_path / "masks" / "0.png").unlink()
    save(tmp_path / "masks" / "0.tif", TRUTH[0].astype(np.float32))
    with pytest.raises(DataError, match="this file has floating-point numbers"):
        labels(tmp_path, classes=2)


@pytest.mark.parametrize(
    ("masks", "says"),
    [
        (np.zeros_like(TRUTH), "masks='class 0: 100.0%': no pixel is labelled 'class 1'"),
        (np.full_like(TRUTH, 255), "masks='ignored: 100.0%': all pixels are ignored"),
        (TRUTH * 2, "no pixel is labelled 'class 1'"),
    ],
)
@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_to_learn_is_refused(
    tmp_path: Path, masks: np.ndarray, says: str, cache: bool, workers: int
) -> None:
    make(tmp_path, masks.astype(np.uint8))
    data = open_dataset("folder", tmp_path, classes=3 if masks.max() == 2 else 2, cache=cache)
    student = nn.Conv2d(3, data.num_classes, 1)
    before = student.weight.detach().clone()
    with pytest.raises(DataError, match=re.escape(says)):
        Trainer(student, epochs=1, progress=False).fit(DataLoader(data, 1, num_workers=workers))
    assert torch.equal(student.weight, before)
    data.allow_empty = True
    data.check_targets()


class Counted(DenseDataset):
    """Sorted by class, as lists of files often are; counts what is read."""

    def __init__(self, labels: list[int], **options: Any) -> None:
        super().__init__(len(labels), size=None, cache=False, **options)
        self.labels = labels
        self.reads: list[int] = []

    def read(self, index: int) -> dict[str, torch.Tensor]:
        self.reads.append(index)
        target = torch.full((2, 2), self.labels[index], dtype=torch.uint8)
        image = torch.zeros(3, 2, 2, dtype=torch.uint8)
        return {"image": image, "mask": target, "depth": target[None].float()}


@pytest.mark.parametrize("count", [1, 2, 3, 64, 97, 100])
def test_targets_are_read_until_all_is_there(count: int) -> None:
    """A few samples of a good set; all of one where a class is rare, or missing, each once."""
    halves = [2 * i // count for i in range(count)]
    rare = [int(i == count - 1) for i in range(count)]
    for labels, task in ((halves, "segmentation"), (halves, "depth"), (rare, "segmentation")):
        data = Counted(labels, task=task, classes=("a", "b"), max_depth=5.0)
        if len(set(labels)) == 2 or (task == "depth" and any(labels)):
            data.check_targets()
            assert len(data.reads) <= (count if labels == rare else 4)
        else:
            with pytest.raises(DataError):
                data.check_targets()
            assert data.reads == [0]
    for task in ("segmentation", "depth"):
        data = Counted([0] * count, task=task, classes=("a", "b"), max_depth=5.0)
        with pytest.raises(DataError, match="'b'" if task == "segmentation" else "no pixel has"):
            data.check_targets()
        assert sorted(data.reads) == list(range(count))


def test_several_labels(tmp_path: Path) -> None:
    make(tmp_path, TRUTH.astype(np.uint8))
    for file in (tmp_path / "masks").iterdir():
        file.unlink()
    for index in range(3):
        save(tmp_path / "masks" / "cat" / f"{index}.png", (255 * TRUTH[index]).astype(np.uint8))
    save(tmp_path / "masks" / "dog" / "1.png", (255 * TRUTH[2]).astype(np.uint8))
    options = {"task": "multilabel", "classes": ["cat", "dog"]}
    got = labels(tmp_path, **options)
    assert got.shape == (3, 2, 12, 16)
    assert (got[:, 0] == TRUTH).all()
    assert (got[1, 1] == TRUTH[2]).all()
    assert not got[[0, 2], 1].any()
    data = open_dataset("folder", tmp_path, size=(6, 8), augment=True, **options)
    assert data[0]["mask"].shape == (2, 6, 8)
    assert data.class_counts()[0] > data.class_counts()[1] > 0
    (tmp_path / "masks" / "dog" / "1.png").unlink()
    (tmp_path / "masks" / "dog" / "x.png").write_bytes(b"")
    with pytest.raises(DataError, match="no pixel is labelled 'dog'"):
        open_dataset("folder", tmp_path, **options).check_targets()


def depth_folder(root: Path, maps: list[np.ndarray], suffix: str = "png") -> Path:
    for index, values in enumerate(maps):
        save(root / "images" / f"{index}.png", np.zeros((*values.shape[:2], 3), np.uint8))
        path = root / "depth" / f"{index}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        if suffix == "npy":
            np.save(path, values)
        else:
            save(path, values)
    return root


def test_depth_in_millimetres_and_in_metres(tmp_path: Path) -> None:
    metres = np.linspace(0.5, 9.5, 48).reshape(6, 8)
    png = depth_folder(tmp_path / "png", [(metres * 1000).astype(np.uint16)])
    data = open_dataset("folder", png, task="depth", depth_scale=0.001)
    assert torch.allclose(data[0]["depth"][0].double(), torch.from_numpy(metres), atol=1e-3)
    assert data.max_depth == 10
    data.check_targets()
    with pytest.raises(DataError, match="depth_scale=None: the depth maps are integers in an"):
        open_dataset("folder", png, task="depth")
    metres[0, 0], metres[0, 1] = np.nan, np.inf
    npy = depth_folder(tmp_path / "npy", [metres.astype(np.float32)], "npy")
    got = open_dataset("folder", npy, task="depth", max_depth=20.0)[0]["depth"][0]
    assert got[0, :2].tolist() == [0, 0]
    assert torch.allclose(got[1:].double(), torch.from_numpy(metres)[1:])
    np.save(npy / "depth" / "0.npy", -metres)
    with pytest.raises(DataError, match="is negative; set it to 0"):
        open_dataset("folder", npy, task="depth")[0]
    (npy / "depth" / "0.npy").write_bytes(b"no")
    with pytest.raises(DataError, match="cannot be read as a NumPy file"):
        open_dataset("folder", npy, task="depth")


def test_depth_in_the_wrong_unit_is_refused(tmp_path: Path) -> None:
    depth_folder(tmp_path, [np.full((6, 8), 2500, np.uint16)])
    data = ImageDepthFolder(tmp_path / "images", tmp_path / "depth", depth_scale=1.0)
    says = r"no depth is from 0 to 10 m: they are 2500 to 2500 m, median 2500; check the unit"
    with pytest.raises(DataError, match=says):
        data.check_targets()
    with pytest.raises(DataError, match=says):
        Trainer(nn.Conv2d(3, 1, 1), task="depth", epochs=1, progress=False).fit(DataLoader(data, 1))
    depth_folder(tmp_path, [np.zeros((6, 8), np.uint16)])
    data = ImageDepthFolder(tmp_path / "images", tmp_path / "depth", depth_scale=0.001)
    with pytest.raises(DataError, match="no pixel has a known depth"):
        data.check_targets()


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    make(tmp_path, TRUTH.astype(np.uint8))
    with pytest.raises(DataError, match=r"split='test': .* has no folder test; create it, or use"):
        open_dataset("folder", tmp_path, classes=2, split="test")
