"""PASCAL VOC 2012, segmentation, with the further annotations of SBD for training.

Everingham, Van Gool, Williams, Winn, Zisserman 2010, "The PASCAL visual object classes (VOC)
challenge"; Hariharan, Arbelaez, Bourdev, Maji, Malik 2011, "Semantic contours from inverse
detectors".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binarize.data.images import folder
from binarize.data.labelled import LabelledPairs, check_split
from binarize.data.mask_coding import label_table, translate
from binarize.data.pairs import reject
from binarize.errors import DataError
from binarize.extras import naming_the_extra

__all__ = ["VOC2012"]

CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "dining table", "dog", "horse", "motorbike", "person", "potted plant"),
    *("sheep", "sofa", "train", "tv monitor"),
)
_LAYOUT = (
    "unpack VOCtrainval_11-May-2012.tar, which makes VOCdevkit/VOC2012 with JPEGImages, "
    "SegmentationClass and ImageSets/Segmentation"
)


def colors(count: int) -> list[tuple[int, int, int]]:
    """Return VOC's colours: a label's bits go to red, green and blue in turn, high bits first."""

    def channel(label: int, first: int) -> int:
        return sum((label >> (3 * bit + first) & 1) << (7 - bit) for bit in range(3))

    return [(channel(label, 0), channel(label, 1), channel(label, 2)) for label in range(count)]


class VOC2012(LabelledPairs):
    """VOC 2012: 1,464 / 1,449 photos with 20 classes and the background; borders are ignored.

    With further annotations the training split has 10,582 images, and none of the validation
    split: from PNGs in the folder ``SegmentationClassAug``, if it is there, or from SBD.

    Args:
        root: The folder ``VOC2012``, ``VOCdevkit``, or the one that contains that.
        split: "train" or "val".
        size: Rows and columns; None keeps each image's own.
        sbd: The folder ``dataset`` of SBD (``benchmark_RELEASE/dataset``, with ``cls/*.mat`` and
            ``img``), whose images are added for training.
        fit: By default "crop": images keep their aspect ratio.
        **options: ``task``, ``augment``, ``normalize``, ``cache``; see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: A folder, a list or a listed file is missing, or the task has no targets here;
            on reading, a label outside 0..20 and 255.
        BinarizeError: SBD needs SciPy, which is not installed.
    """

    classes = CLASSES
    num_classes = len(CLASSES)

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] | None = (375, 500),
        *,
        sbd: str | Path | None = None,
        fit: str = "crop",
        **options: Any,
    ) -> None:
        check_split(split, ("train", "val"))
        top = folder(root, "root")
        for inner in ("VOCdevkit/VOC2012", "VOC2012"):
            if (top / inner).is_dir():
                top = top / inner
                break
        for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            if not (top / part).is_dir():
                raise DataError("root", str(root), f"has no folder {part}", _LAYOUT)
        listed = {name: _list(top, name) for name in dict.fromkeys((split, "val"))}
        masks = {
            stem: (
                top / "JPEGImages" / f"{stem}.jpg",
                top / "SegmentationClass" / f"{stem}.png",
            )
            for stem in listed[split]
        }
        self.note: str | None = None
        if split == "train":
            further = _further(top, sbd, set(listed["val"]) | masks.keys())
            if further:
                self.note = f"{len(masks)} images of VOC 2012 and {len(further)} of SBD"
            masks |= further
        pairs = []
        for pair in masks.values():
            missing = next((file for file in pair if not file.is_file()), None)
            if missing is None:
                pairs.append(pair)
            else:
                reject(DataError("root", str(root), f"{missing} is missing", _LAYOUT))
        super().__init__(
            pairs,
            label_table(len(CLASSES)),
            size=size,
            fit=fit,
            classes=CLASSES,
            colors=colors(len(CLASSES)),
            **options,
        )

    def labels(self, path: Path) -> Tensor:
        """Read a label map (H, W), uint8."""
        if path.suffix == ".mat":
            return translate(_read_mat(path), self._table, path)
        return super().labels(path)


def _list(top: Path, split: str) -> list[str]:
    path = top / "ImageSets" / "Segmentation" / f"{split}.txt"
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("root", str(path), "cannot be read", _LAYOUT) from error


def _further(top: Path, sbd: str | Path | None, taken: set[str]) -> dict[str, tuple[Path, Path]]:
    """Return the images beyond VOC's own lists, with their label maps."""
    if sbd is not None:
        base = folder(sbd, "sbd")
        base = base / "dataset" if (base / "dataset").is_dir() else base
        found = sorted((base / "cls").glob("*.mat"))
        if not found:
            rule = "has no files cls/*.mat"
            raise DataError("sbd", str(sbd), rule, "give the folder benchmark_RELEASE/dataset")
        with naming_the_extra():
            import scipy.io  # noqa: F401
        return {
            file.stem: (base / "img" / f"{file.stem}.jpg", file)
            for file in found
            if file.stem not in taken
        }
    return {
        file.stem: (top / "JPEGImages" / f"{file.stem}.jpg", file)
        for file in sorted((top / "SegmentationClassAug").glob("*.png"))
        if file.stem not in taken
    }


def _read_mat(path: Path) -> Tensor:
    from scipy.io import loadmat

    try:
        labels = loadmat(path)["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # SciPy raises many types on damaged files
        raise DataError(
            "file", str(path), "has no label map GTcls.Segmentation", "replace the file"
        ) from error
    return torch.from_numpy(np.asarray(labels).astype(np.int32))
