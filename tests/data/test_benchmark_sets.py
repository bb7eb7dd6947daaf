"""Public data sets, on tiny trees of the layout in which each one ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from binarize.data import (
    ADE20K,
    IGNORE,
    KITTI,
    VOC2012,
    Augment,
    Cityscapes,
    NYUv2Lists,
    dataset_splits,
    open_dataset,
)
from binarize.errors import DataError
from binarize.train import Trainer

SIZE = (24, 32)


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def photo(path: Path, rows: int = SIZE[0], columns: int = SIZE[1]) -> None:
    tile = np.random.default_rng(rows).integers(0, 256, (1, columns, 3), dtype=np.uint8)
    save(path, np.repeat(tile, rows, axis=0))


def cityscapes(top: Path) -> Path:
    labels = np.full(SIZE, 4, np.uint8)  # static: ignored
    labels[:12], labels[12:, :16] = 7, 33  # road, bicycle
    for split, count in (("train", 3), ("val", 1)):
        for index in range(count):
            stem = f"ulm_{index:06d}_000019"
            photo(top / "leftImg8bit" / split / "ulm" / f"{stem}_leftImg8bit.png")
            save(top / "gtFine" / split / "ulm" / f"{stem}_gtFine_labelIds.png", labels)
            save(top / "gtFine" / split / "ulm" / f"{stem}_gtFine_color.png", labels)
    return top


def ade20k(top: Path) -> Path:
    base = top / "ADEChallengeData2016"
    labels = np.zeros((24, 48), np.uint8)
    labels[:, 12:24], labels[:, 24:] = 1, 150
    for split, count in (("training", 3), ("validation", 1)):
        for index in range(count):
            stem = f"ADE_{split[:5]}_{index:08d}"
            photo(base / "images" / split / f"{stem}.jpg", 24, 48)
            save(base / "annotations" / split / f"{stem}.png", labels)
    rows = [f"{i}\t0.1\t9\t9\tname {i}, other {i}" for i in range(1, 151)]
    (base / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]))
    return top


def voc2012(top: Path) -> Path:
    base = top / "VOCdevkit" / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    labels = np.zeros(SIZE, np.uint8)
    labels[8:16], labels[16:] = 20, 255
    for split, stems in (("train", ["2007_1", "2007_2"]), ("val", ["2008_1"])):
        (lists / f"{split}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            photo(base / "JPEGImages" / f"{stem}.jpg")
            image = Image.fromarray(labels, "P")
            image.putpalette([value for i in range(256) for value in (i, 0, 255 - i)])
            (base / "SegmentationClass").mkdir(exist_ok=True)
            image.save(base / "SegmentationClass" / f"{stem}.png")
    return top


DRIVE = "2011_09_26_drive_0001_sync"


def kitti(top: Path) -> Path:
    depth = np.zeros((375, 1242), np.uint16)
    depth[280:330, 560:640] = 256 * 20
    depth[300, 2] = 256 * 7  # beyond the windows
    depth[100, 600], depth[374, 600] = 256 * 30, 256 * 9  # above the Garg crop, and below
    for part, frames in (("train", range(5, 7)), ("val", range(7, 8))):
        for frame in frames:
            photo(top / "2011_09_26" / DRIVE / "image_02/data" / f"{frame:010d}.png", 375, 1242)
            truth = top / "data_depth_annotated" / part / DRIVE / "proj_depth/groundtruth/image_02"
            save(truth / f"{frame:010d}.png", depth)
    photo(top / "2011_09_26" / DRIVE / "image_02/data/0000000000.png", 375, 1242)

    def line(frame: int) -> str:
        image = f"2011_09_26/{DRIVE}/image_02/data/{frame:010d}.png"
        return f"{image} {DRIVE}/proj_depth/groundtruth/image_02/{frame:010d}.png 721.5377\n"

    (top / "eigen_train_files_with_gt.txt").write_text(line(5) + line(6))
    without = f"2011_09_26/{DRIVE}/image_02/data/0000000000.png None 721.5377\n"
    (top / "eigen_test_files_with_gt.txt").write_text(without + line(7))
    return top


def nyu_lists(top: Path) -> Path:
    depth = np.full((480, 640), 2500, np.uint16)
    depth[45, 41] = 0
    for folder, room in (("sync", "bathroom_0001"), ("official_splits/test", "bathroom")):
        photo(top / folder / room / "rgb_00001.jpg", 480, 640)
        save(top / folder / room / "sync_depth_00001.png", depth)
        split = "train" if folder == "sync" else "test"
        slash = "/" if split == "train" else ""
        (top / f"nyudepthv2_{split}_files_with_gt.txt").write_text(
            f"{slash}{room}/rgb_00001.jpg {slash}{room}/sync_depth_00001.png 518.8579\n"
        )
    return top


def test_cityscapes_labels_become_the_nineteen_classes(tmp_path: Path) -> None:
    data = Cityscapes(cityscapes(tmp_path), size=None)
    assert (len(data), data.num_classes, data.classes[18]) == (3, 19, "bicycle")
    mask = data[0]["mask"]
    assert mask[0, 0] == 0
    assert mask[23, 0] == 18
    assert mask[23, 31] == IGNORE
    assert data.palette[0] == (128, 64, 128)
    assert len(Cityscapes(tmp_path, "val")) == 1
    with pytest.raises(DataError, match="split='test': unknown split; use 'train' or 'val'"):
        Cityscapes(tmp_path, "test")
    next(tmp_path.glob("gtFine/train/*/*000002_000019_gtFine_labelIds.png")).unlink()
    with pytest.raises(DataError, match="image ulm_000002_000019_leftImg8bit.png has no labels"):
        Cityscapes(tmp_path)


def test_ade20k_label_zero_is_ignored_and_names_are_read(tmp_path: Path) -> None:
    data = ADE20K(ade20k(tmp_path), size=None)
    assert data.classes[::149] == ("name 1", "name 150")
    assert data[0]["mask"][0, [0, 12, 24]].tolist() == [IGNORE, 0, 149]
    assert len(ADE20K(tmp_path / "ADEChallengeData2016", "val")) == 1
    # The aspect ratio is kept: the middle of twice the width, or a random place.
    whole = ADE20K(tmp_path, "val", None)[0]
    middle = ADE20K(tmp_path, "val", (24, 24))[0]
    assert all(torch.equal(middle[key], whole[key][..., 12:36]) for key in middle)
    cut = ADE20K(tmp_path, "val", (24, 24), augment=Augment(flip=0.0))
    places = {int((cut[0]["mask"][0] == IGNORE).sum()) for _ in range(20)}
    assert len(places) > 5
    resized = ADE20K(tmp_path, "val", (24, 24), fit="resize")[0]["mask"][0]
    assert resized.unique().tolist() == [0, 149, IGNORE]
    info = tmp_path / "ADEChallengeData2016" / "objectInfo150.txt"
    info.write_text("Idx\tName\n1\twall\n")
    with pytest.raises(DataError, match="has 1 lines of classes, not 150; replace the file"):
        ADE20K(tmp_path)
    info.unlink()
    assert ADE20K(tmp_path).classes[0] == "class 1"


def test_voc_has_palette_labels_and_more_images_from_elsewhere(tmp_path: Path) -> None:
    data = VOC2012(voc2012(tmp_path), size=None)
    assert len(data) == 2
    assert data.note is None
    assert data[0]["mask"][:, 0].unique().tolist() == [0, 20, IGNORE]
    assert data.palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert data.palette[20] == (0, 64, 128)
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for stem in ("2007_1", "2008_1", "2009_1"):  # the second is a validation image
        save(base / "SegmentationClassAug" / f"{stem}.png", np.full(SIZE, 3, np.uint8))
    photo(base / "JPEGImages" / "2009_1.jpg")
    data = VOC2012(base, size=None)
    assert len(data) == 3
    assert data.note == "2 images of VOC 2012 and 1 of SBD"
    assert data[2]["mask"].unique().tolist() == [3]
    assert len(VOC2012(base, "val")) == 1


def test_voc_with_sbd_files(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io", reason="SciPy is not installed")
    voc2012(tmp_path)
    sbd = tmp_path / "benchmark_RELEASE" / "dataset"
    (sbd / "cls").mkdir(parents=True)
    for stem in ("2008_1", "2010_1", "2010_2"):
        content = np.zeros((1, 1), [("Boundaries", "O"), ("Segmentation", "O")])
        content["Segmentation"][0, 0] = np.full(SIZE, 5, np.uint8)
        scipy_io.savemat(sbd / "cls" / f"{stem}.mat", {"GTcls": content})
        photo(sbd / "img" / f"{stem}.jpg")
    (sbd / "cls" / "2010_2.mat").write_bytes(b"damaged")
    data = VOC2012(tmp_path, size=None, sbd=tmp_path / "benchmark_RELEASE")
    assert len(data) == 4
    assert data[2]["mask"].unique().tolist() == [5]
    with pytest.raises(DataError, match=r"has no label map GTcls\.Segmentation; replace the file"):
        data[3]


def test_kitti_reads_metres_and_counts_inside_the_crops(tmp_path: Path) -> None:
    train = KITTI(kitti(tmp_path), size=None)
    assert train.max_depth == 80
    item = train[0]
    assert item["image"].shape == (3, 352, 1216)
    # The top 23 rows and 13 columns on either side are cut.
    assert item["depth"][0, 300 - 23, 600 - 13] == 20
    assert sorted(item["depth"].unique().tolist()) == [0, 9, 20, 30]
    test = KITTI(tmp_path, "test", size=None)
    assert len(test) == 1
    assert test.note == "1 of 2 listed images have no depth"
    assert test[0]["depth"].unique().tolist() == [0, 20]
    assert test[0]["depth"][0, 277, 587] == 20
    every = KITTI(tmp_path, "test", size=None, eval_crop="none")[0]["depth"]
    assert sorted(every.unique().tolist()) == [0, 9, 20, 30]
    # The middle at the image's own scale, where the benchmark's networks look.
    assert torch.equal(KITTI(tmp_path, "test")[0]["image"], test[0]["image"][..., 256:960])
    assert dataset_splits("kitti", tmp_path) == ("train", "test")


def test_kitti_drives_frames_and_sides(tmp_path: Path) -> None:
    kitti(tmp_path)
    lists = tmp_path / "splits" / "eigen"
    lists.mkdir(parents=True)
    (lists / "val_files.txt").write_text(f"2011_09_26/{DRIVE} 7 l\n2011_09_26/{DRIVE} 0 l\n")
    data = KITTI(tmp_path, "val", lists=lists)
    assert len(data) == 1
    assert data.files(0)["image"][0].name == "0000000007.png"
    (lists / "val_files.txt").write_text(f"2011_09_26/{DRIVE} 7 r\n")
    with pytest.raises(DataError, match=r"has no image 2011_09_26/.*/image_03/data/0000000007.png"):
        KITTI(tmp_path, "val")
    (lists / "val_files.txt").write_text("one\n")
    with pytest.raises(DataError, match=r"entry 1 \(one\) names one file only"):
        KITTI(tmp_path, "val")


def test_nyu_lists_hold_millimetres(tmp_path: Path) -> None:
    data = open_dataset("nyuv2", nyu_lists(tmp_path))
    assert isinstance(data, NYUv2Lists)
    assert data[0]["image"].shape == (3, 416, 544)
    whole = NYUv2Lists(tmp_path, "test", None)[0]
    assert whole["depth"].shape == (1, 426, 560)
    assert whole["depth"][0, 0, 0] == 0
    assert whole["depth"].max().item() == pytest.approx(2.5)
    named = tmp_path / "lists"
    named.mkdir()
    (named / "train.txt").write_text(
        "sync/bathroom_0001/rgb_00001.jpg sync/bathroom_0001/x.png 1\n"
    )
    with pytest.raises(DataError, match=r"has no file .*x.png, which train.txt lists"):
        open_dataset("nyuv2", tmp_path, lists=named)
    with pytest.raises(DataError, match="the lists of NYUv2 have depth only"):
        open_dataset("nyuv2", tmp_path, task="segmentation")
    (tmp_path / "sync" / "bathroom_0001" / "sync_depth_00001.png").unlink()
    with pytest.raises(DataError, match=r"has no file .*sync_depth_00001.png, which nyudepthv2_tr"):
        NYUv2Lists(tmp_path)


MADE: dict[str, Callable[[Path], Path]] = {
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "kitti": kitti,
    "nyuv2": nyu_lists,
    "voc2012": voc2012,
}


@pytest.mark.parametrize("name", MADE)
def test_a_step_of_training(name: str, tmp_path: Path) -> None:
    augment = Augment(zoom=2.0, shrink=0.5, rotate=5.0, jitter=0.1)
    data = open_dataset(name, MADE[name](tmp_path), size=SIZE, augment=augment)
    data.allow_empty = True
    depth = data.task == "depth"
    network = nn.Conv2d(3, 1 if depth else data.num_classes, 3, padding=1)
    trainer = Trainer(network, task=data.task, epochs=1, progress=False)
    trainer.fit(DataLoader(data, 1), DataLoader(data, 1))
    assert trainer.history[-1]["AbsRel" if depth else "mIoU"] is not None


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ade20k", r"has no folder images/training; unpack ADEChallengeData2016.zip"),
        ("cityscapes", r"has no folder leftImg8bit/train; unpack leftImg8bit_trainvaltest.zip and"),
        ("kitti", r"has no list of the train split; put eigen_train_files_with_gt.txt or train_f"),
        ("nyuv2", r"images.: no such folder; give the path of the data set"),
        ("voc2012", r"has no folder JPEGImages; unpack VOCtrainval_11-May-2012.tar"),
    ],
)
def test_what_is_expected_where(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        open_dataset(name, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [("ade20k", 151), ("cityscapes", 34), ("voc2012", 21)])
def test_a_label_out_of_range(name: str, value: int, tmp_path: Path) -> None:
    data: Any = open_dataset(name, MADE[name](tmp_path), size=SIZE, cache=False)
    image, mask = data.pairs[0]
    save(mask, np.full((24, 48) if name == "ade20k" else SIZE, value, np.uint8))
    with pytest.raises(DataError, match=rf"label={value}: .* has a label outside 0\.\."):
        data[0]
    save(mask, np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match=r"its size \(9, 9\) is not the image's"):
        data[0]
    mask.write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be read as an image"):
        data[0]
    with pytest.raises(DataError, match=r"task='depth': \w+ has no depth; use task='segmentation'"):
        open_dataset(name, tmp_path, task="depth")


def test_labelled_nyu_that_is_not_complete_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("0001\n0002\n")
    with pytest.raises(DataError, match=r"images.: no such folder; give the path of the data set"):
        open_dataset("nyuv2", tmp_path)
