"""CamVid, the road scene data set in the split of SegNet.

Brostow, Shotton, Fauqueur, Cipolla 2008, "Segmentation and recognition using structure from
motion point clouds"; eleven classes as in Badrinarayanan, Kendall, Cipolla 2017.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from binarize.data.images import folder, image_files
from binarize.data.labelled import LabelledPairs, check_split
from binarize.data.mask_coding import label_table
from binarize.data.pairs import paired

__all__ = ["CamVid"]

CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "cyclist",
)
COLORS = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
VOID = 11


class CamVid(LabelledPairs):
    """CamVid: 367 / 101 / 233 road scenes with eleven classes, void ignored.

    Args:
        root: Folder with ``{train,val,test}/images`` and ``{train,val,test}/labels``.
        split: "train", "val" or "test".
        size: Rows and columns; None keeps 360×480.
        **options: ``task``, ``augment``, ``normalize``, ``cache``; see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: A folder is missing, an image has no label map, or the task has no labels
            here; on reading, a label outside 0..11.
    """

    classes = CLASSES
    num_classes = len(CLASSES)

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] | None = (144, 192),
        **options: Any,
    ) -> None:
        check_split(split, ("train", "val", "test"))
        base = folder(root, "root") / split
        pairs = paired(image_files(base / "images", "root"), base / "labels", "root")
        table = label_table(len(CLASSES), void=(VOID,))
        super().__init__(pairs, table, size=size, classes=CLASSES, colors=COLORS, **options)
