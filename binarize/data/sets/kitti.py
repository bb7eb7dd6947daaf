"""KITTI, road scenes with depth from a laser scanner, in the split of Eigen.

Geiger, Lenz, Urtasun 2012, "Are we ready for autonomous driving?"; the ground truth of Uhrig et al.
2017, "Sparsity invariant CNNs", which accumulates 11 scans and drops what contradicts the stereo
images; the split of Eigen, Puhrsch, Fergus 2014.

Shape legend: H, W rows and columns of an image, some 375×1242.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from binarize.data.labelled import check_split
from binarize.data.pairs import reject
from binarize.data.sets.depth_lists import (
    EIGEN,
    GARG,
    ListedDepth,
    lists_of,
    need_list,
    read_list,
    window_of,
)
from binarize.errors import DataError

__all__ = ["KITTI"]

METRES_PER_UNIT = 1 / 256
MAX_DEPTH = 80.0
ROWS, COLUMNS = 352, 1216
_CROPS = {"garg": GARG, "eigen": EIGEN, "none": (0.0, 1.0, 0.0, 1.0)}
_IMAGES = ("", "raw", "raw_data", "kitti_raw", "input")
_DEPTH = ("data_depth_annotated", "depth", "gt_depth", "")
STEMS = ("eigen", "kitti_eigen")
_LAYOUT = (
    "expected DATE/DATE_drive_NNNN_sync/image_02/data/*.png of the raw data and "
    "data_depth_annotated/{train,val}/DATE_drive_NNNN_sync/proj_depth/groundtruth/image_02/*.png"
)


class KITTI(ListedDepth):
    """KITTI: road scenes with depth in metres, at the lines of a list (Eigen's 23 K / 697 images).

    Images and depth are cropped to the lowest 352 rows and the middle 1216 columns, as the depth
    benchmark does, and images keep their scale: at the default size a window of 704 columns is
    drawn in training, and the middle one measured. ``size=None`` takes all 1216 columns.

    Listed images without ground truth (45 of the 697) are left out; ``note`` counts them.

    Args:
        root: Folder with the raw data's ``DATE/DATE_drive_NNNN_sync/image_02/data`` (or these in
            ``raw``) and with ``data_depth_annotated``.
        split: "train", "val" or "test".
        size: Rows and columns.
        lists: Folder with the lists of the splits, such as ``eigen_train_files_with_gt.txt``
            ("IMAGE DEPTH FOCAL") or ``train_files.txt`` ("DRIVE FRAME SIDE"); None looks in
            ``root`` and in its ``splits/eigen``.
        eval_crop: Part of the image whose depth counts in "val" and "test": "garg", "eigen" or
            "none".
        task: "depth".
        fit: By default "crop".
        **options: ``augment``, ``normalize``, ``cache``, ``max_depth`` (default 80); see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: A list, an image or all ground truth is missing, or the task has no targets here;
            on reading, an image and its depth of different size.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] | None = (352, 704),
        *,
        lists: str | Path | None = None,
        eval_crop: str = "garg",
        task: str | None = "depth",
        fit: str = "crop",
        max_depth: float = MAX_DEPTH,
        **options: Any,
    ) -> None:
        if task not in (None, "depth"):
            raise DataError("task", task, "KITTI has depth only", "use task='depth'")
        check_split(split, ("train", "val", "test"))
        if eval_crop not in _CROPS:
            raise DataError("eval_crop", eval_crop, "unknown crop", f"use {', '.join(_CROPS)}")
        top, places = lists_of(root, lists)
        listed = need_list(places, STEMS, split, f"{split}_files.txt")
        self._crop = None if split == "train" else _CROPS[eval_crop]
        pairs = []
        unknown = 0
        for words in read_list(listed):
            image, depth = _find(top, words)
            if image is None:
                rule = f"has no image {_image_path(words)}, which {listed.name} lists"
                reject(DataError("root", str(root), rule, _LAYOUT))
            elif depth is None:
                unknown += 1
            else:
                pairs.append((image, depth))
        if unknown and not pairs:
            rule = f"has ground truth for none of the {unknown} images of {listed.name}"
            raise DataError("root", str(root), rule, _LAYOUT)
        self.note = None
        if unknown:
            self.note = f"{unknown} of {unknown + len(pairs)} listed images have no depth"
        super().__init__(
            pairs,
            size=size,
            fit=fit,
            max_depth=max_depth,
            depth_scale=METRES_PER_UNIT,
            **options,
        )

    def read(self, index: int) -> dict[str, Tensor]:
        """Read one image and its depth, cropped; what does not count is 0."""
        sample = super().read(index)
        image, depth = sample["image"], sample["depth"]
        rows, columns = image.shape[-2:]
        if self._crop is not None:
            counted = torch.zeros_like(depth)
            inside = (..., *window_of(self._crop, rows, columns))
            counted[inside] = depth[inside]
            depth = counted
        top, left = max(0, rows - ROWS), max(0, (columns - COLUMNS) // 2)
        window = (..., slice(top, top + ROWS), slice(left, left + COLUMNS))
        return {"image": image[window], "depth": depth[window]}


def _image_path(words: list[str]) -> str:
    if words[-1] not in ("l", "r"):
        return words[0]
    camera = "image_02" if words[-1] == "l" else "image_03"
    return f"{words[0]}/{camera}/data/{int(words[1]):010d}.png"


def _find(top: Path, words: list[str]) -> tuple[Path | None, Path | None]:
    """Return the image and the depth file of a line, each None where it is missing."""
    path = _image_path(words)
    stem = path.rpartition(".")[0]
    image = next(
        (
            file
            for place in _IMAGES
            for end in (".png", ".jpg")
            if (file := top / place / f"{stem}{end}").is_file()
        ),
        None,
    )
    if words[1] == "None":
        return image, None
    *_, drive, camera, _, frame = stem.split("/") if stem.count("/") > 3 else ["", "", "", "", ""]
    named = [f"{drive}/proj_depth/groundtruth/{camera}/{frame}.png"]
    if words[-1] not in ("l", "r"):
        named.insert(0, words[1])
    depth = next(
        (
            file
            for place in _DEPTH
            for part in ("", "train", "val")
            for name in named
            if (file := top / place / part / name).is_file()
        ),
        None,
    )
    return image, depth
