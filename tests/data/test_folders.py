"""Data sets from folders: what they read, and how they say that they cannot."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from binarize.data import (
    CamVid,
    ImageMaskFolder,
    NYUv2,
    balanced_weights,
    dataset_names,
    open_dataset,
)
from binarize.errors import DataError


def _save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def _picture(seed: int, rows: int = 12, columns: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def _labels(seed: int, classes: int, rows: int = 12, columns: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, (rows, columns), dtype=np.uint8)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    for index in range(3):
        _save(tmp_path / "images" / f"{index}.png", _picture(index))
        _save(tmp_path / "masks" / f"{index}.png", _labels(index, 4))
    return tmp_path


def test_folder_pairs_by_stem(pairs: Path) -> None:
    data = ImageMaskFolder(pairs / "images", pairs / "masks", classes=4, normalize="none")
    assert len(data) == 3
    item = data[1]
    assert torch.equal(item["mask"], torch.from_numpy(_labels(1, 4)).long())
    assert torch.allclose(item["image"] * 255, torch.from_numpy(_picture(1)).permute(2, 0, 1) / 1.0)
    assert torch.equal(data.denormalize(item["image"]), data._stored(1)["image"])
    batch = next(iter(DataLoader(data, batch_size=3)))
    assert batch["image"].shape == (3, 3, 12, 16)


def test_normalisation(pairs: Path) -> None:
    raw = torch.from_numpy(_picture(0)).permute(2, 0, 1).double() / 255
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    for name, expected in (("imagenet", (raw - mean) / std), ("symmetric", raw * 2 - 1)):
        data = ImageMaskFolder(pairs / "images", pairs / "masks", classes=4, normalize=name)
        assert torch.allclose(data[0]["image"].double(), expected, atol=1e-6)


def test_class_names_from_a_file(pairs: Path) -> None:
    (pairs / "classes.txt").write_text("a\nb\nc\nd\n\n")
    assert ImageMaskFolder(pairs / "images", pairs / "masks").classes == ("a", "b", "c", "d")
    assert open_dataset("folder", pairs).num_classes == 4


def test_folder_with_splits(pairs: Path) -> None:
    _save(pairs / "val" / "images" / "x.png", _picture(7))
    _save(pairs / "val" / "labels" / "x.png", _labels(7, 4))
    data = open_dataset("folder", pairs, split="val", size=(6, 8), classes=4)
    assert len(data) == 1
    assert data[0]["mask"].shape == (6, 8)
    assert len(open_dataset("folder", pairs, split="train", classes=4)) == 3


def test_labels_are_checked_when_they_are_loaded(pairs: Path) -> None:
    data = ImageMaskFolder(pairs / "images", pairs / "masks", classes=3)
    with pytest.raises(DataError) as caught:
        data[0]
    assert str(caught.value) == (
        f"label=3: {pairs / 'masks' / '0.png'} has a label outside 0..2 and 255 (ignored); "
        "map it to a class or to the ignored label, or raise the number of classes"
    )


def test_ignored_label_passes(pairs: Path) -> None:
    mask = _labels(0, 4)
    mask[0] = 255
    _save(pairs / "masks" / "0.png", mask)
    data = ImageMaskFolder(pairs / "images", pairs / "masks", classes=4)
    assert (data[0]["mask"][0] == 255).all()
    counts = data.class_counts()
    assert counts.sum() == 3 * 12 * 16 - 16


def test_sixteen_bit_labels_are_checked(pairs: Path) -> None:
    _save(pairs / "masks" / "0.png", np.full((12, 16), 300, np.uint16))
    data = ImageMaskFolder(pairs / "images", pairs / "masks", classes=4)
    with pytest.raises(DataError, match=r"label=300: .*0\.png has a label outside 0\.\.3"):
        data[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no mask", r"masks='.*masks': image 1\.png has no mask; add 1\.png there, or remove"),
        ("no folder", r"images='.*images': no such folder; give the path of the data set"),
        ("a file", r"masks='.*masks': is not a folder; give the path of the data set"),
        ("empty", r"images='.*images': has no images; check the folder"),
        (
            "colours",
            r"file='.*0\.png': a mask needs one number per pixel, this file has 3 channels",
        ),
        ("size", r"masks='.*0\.png': its size \(5, 5\) is not the image's \(12, 16\); save"),
        ("cut off", r"file='.*0\.png': cannot be read as an image; replace the file"),
        ("vanished", r"file='.*0\.png': no such file; complete the data set, or check its folder"),
    ],
)
def test_damaged_folders(pairs: Path, damage: str, message: str) -> None:
    if damage == "no mask":
        (pairs / "masks" / "1.png").unlink()
    elif damage == "no folder":
        (pairs / "images").rename(pairs / "elsewhere")
    elif damage == "a file":
        (pairs / "masks").rename(pairs / "elsewhere")
        (pairs / "masks").write_text("")
    elif damage == "empty":
        for file in (pairs / "images").iterdir():
            file.unlink()
    elif damage == "colours":
        _save(pairs / "masks" / "0.png", _picture(0))
    elif damage == "size":
        _save(pairs / "masks" / "0.png", _labels(0, 4, 5, 5))
    elif damage == "cut off":
        whole = (pairs / "images" / "0.png").read_bytes()
        (pairs / "images" / "0.png").write_bytes(whole[: len(whole) // 2])

    def first_sample() -> None:
        data = ImageMaskFolder(pairs / "images", pairs / "masks", classes=4)
        if damage == "vanished":
            (pairs / "images" / "0.png").unlink()
        data[0]

    with pytest.raises(DataError, match=message) as caught:
        first_sample()
    assert "\n" not in str(caught.value)


def test_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    expected = "the folder cannot be read (Permission denied); check its permissions"
    with pytest.raises(DataError, match=re.escape(expected)):
        CamVid(tmp_path)


def test_camvid_layout(tmp_path: Path) -> None:
    labels = _labels(0, 12)
    _save(tmp_path / "val" / "images" / "a.jpg", _picture(0))
    _save(tmp_path / "val" / "labels" / "a.png", labels)
    data = CamVid(tmp_path, "val", (12, 16))
    expected = torch.from_numpy(labels).long()
    expected[expected == 11] = 255
    assert torch.equal(data[0]["mask"], expected)
    assert data.num_classes == len(data.palette) == 11
    with pytest.raises(DataError, match="split='dev': unknown split; use 'train', 'val' or"):
        CamVid(tmp_path, "dev")
    with pytest.raises(DataError, match="task='depth': CamVid has no depth"):
        CamVid(tmp_path, "val", task="depth")
    with pytest.raises(DataError, match=r"root='.*images': no such folder"):
        CamVid(tmp_path, "test")


@pytest.fixture
def nyu(tmp_path: Path) -> Path:
    _save(tmp_path / "images" / "0001.jpg", _picture(1, 480, 640))
    depth = np.zeros((480, 640), np.uint8)
    depth[45:471, 41:601] = 51
    _save(tmp_path / "depth" / "0001.png", depth)
    labels = np.full((480, 640), 200, np.uint8)  # not a label, but outside the crop
    labels[45:471, 41:601] = np.arange(560) // 14
    _save(tmp_path / "labels" / "0001.png", labels)
    (tmp_path / "train.txt").write_text("0001\n")
    (tmp_path / "test.txt").write_text("")
    return tmp_path


def test_nyu_is_cropped_and_scaled(nyu: Path) -> None:
    data = NYUv2(nyu, "train", (30, 40))
    item = data[0]
    assert set(item) == {"image", "depth"}
    assert torch.allclose(item["depth"], torch.full((1, 30, 40), 2.0))
    assert data.max_depth == 10.0
    whole = NYUv2(nyu, "train", None)
    assert whole[0]["depth"].shape == (1, 426, 560)


def test_nyu_classes(nyu: Path) -> None:
    labels = np.zeros((480, 640), np.uint8)
    labels[45:471, 41:601] = np.arange(560) // 14
    _save(nyu / "labels" / "0001.png", labels)
    data = NYUv2(nyu, "train", None, task="segmentation")
    row = data[0]["mask"][0].view(40, 14)
    assert (row == row[:, :1]).all()
    # wall, floor, cabinet, bed, chair, sofa, table ... as NYU40 numbers them, then 39: ignored
    named = [data.classes[i] if i < 13 else "-" for i in row[:, 0].tolist()]
    expected = (
        "wall floor furniture bed chair sofa table wall window furniture picture furniture "
        "window table furniture window furniture objects objects floor objects ceiling books "
        "furniture tv"
    )
    assert named[:25] == expected.split()
    assert named[25:] == [*["objects"] * 6, "furniture", *["objects"] * 6, "furniture", "-"]


@pytest.mark.parametrize("task", ["segmentation", "segmentation+depth", "edges"])
def test_nyu_has_forty_classes_too(nyu: Path, task: str) -> None:
    labels = np.full((480, 640), 255, np.uint8)
    labels[45:471, 41:601] = np.arange(560) // 14  # 0 to 39
    _save(nyu / "labels" / "0001.png", labels)
    data = open_dataset("nyuv2", nyu, size="original", task=task, classes=40)
    assert data.num_classes == len(data.classes) == len(set(data.classes)) == 40
    assert len(data.palette) == 40
    row = data[0]["mask"][0].view(40, 14)[:, 0].tolist()
    assert row == [*range(39), 255]
    assert [data.classes[i] for i in (0, 3, 19, 27, 38)] == [
        *("wall", "bed", "floor mat", "shower curtain", "other furniture")
    ]
    data.check_targets()  # other props have no label of their own
    labels[labels == 7] = 0
    _save(nyu / "labels" / "0001.png", labels)
    with pytest.raises(DataError, match=r"no pixel is labelled 'door'; check"):
        open_dataset("nyuv2", nyu, size="original", task=task, classes=40).check_targets()
    with pytest.raises(DataError, match=r"^classes=39: NYUv2 has 13 or 40 classes; use one of"):
        NYUv2(nyu, task=task, classes=39)


def test_nyu_says_what_is_missing(nyu: Path) -> None:
    with pytest.raises(DataError, match="data set=0: has no samples; check the split"):
        NYUv2(nyu, "test")
    with pytest.raises(DataError, match="split='dev': unknown split; use 'train' or 'test'"):
        NYUv2(nyu, "dev")
    data = NYUv2(nyu, "train", task="segmentation")
    with pytest.raises(DataError, match=r"label=200: .*0001\.png has a label outside 0\.\.38"):
        data[0]
    (nyu / "train.txt").unlink()
    with pytest.raises(DataError, match=r"root='.*': train\.txt cannot be read; complete the"):
        NYUv2(nyu, "train")


def test_registry_says_what_is_wrong(tmp_path: Path) -> None:
    assert set(dataset_names()) == {
        *("ade20k", "camvid", "cityscapes", "folder", "kitti", "nyuv2", "scenes", "voc2012")
    }
    with pytest.raises(DataError) as caught:
        open_dataset("camvit", tmp_path)
    assert str(caught.value) == "data='camvit': unknown data set; did you mean 'camvid'?"
    with pytest.raises(DataError) as caught:
        open_dataset("nyuv2")
    assert str(caught.value) == "root=None: 'nyuv2' is read from a folder; give its path"
    with pytest.raises(DataError, match=r"classes=None: .*classes\.txt does not exist; give the"):
        open_dataset("folder", tmp_path)


def test_registry_splits_differ() -> None:
    train = open_dataset("scenes", split="train", count=2, size=(32, 32))
    val = open_dataset("scenes", split="val", count=2, size=(32, 32))
    assert not torch.equal(train[0]["image"], val[0]["image"])
    assert set(open_dataset("scenes", task="depth", count=1)[0]) == {"image", "depth"}


def test_cache_and_preload(pairs: Path) -> None:
    cached = ImageMaskFolder(pairs / "images", pairs / "masks", (6, 8), classes=4)
    fresh = ImageMaskFolder(pairs / "images", pairs / "masks", (6, 8), classes=4, cache=False)
    seen: list[tuple[int, int]] = []
    cached.preload(lambda done, count: seen.append((done, count)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    expected = fresh[2]
    for file in (pairs / "images").iterdir():
        file.unlink()
    assert all(torch.equal(cached[2][key], expected[key]) for key in expected)
    with pytest.raises(DataError, match="no such file"):
        fresh[2]


def test_balanced_weights() -> None:
    counts = torch.tensor([900, 100, 0])
    assert balanced_weights(counts, 0).tolist() == [1, 1, 1]
    even = balanced_weights(counts, 1)
    assert even[:2].tolist() == pytest.approx([1000 / 1800, 1000 / 200])
    half = balanced_weights(counts, 0.5).double()
    assert (half * counts).sum() / 1000 == pytest.approx(1)
    assert half[1] / half[0] == pytest.approx(3)
    with pytest.raises(DataError, match=r"counts=.*: contain no pixel; use a set with labels"):
        balanced_weights(torch.zeros(3))
    with pytest.raises(DataError, match="power=2: must be from 0 to 1"):
        balanced_weights(counts, 2)
    with pytest.raises(DataError, match="task='depth': there are no labels"):
        open_dataset("scenes", task="depth", count=1).class_counts()
