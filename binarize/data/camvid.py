"""CamVid, the road scene data set in the split of SegNet.

Brostow, Shotton, Fauqueur, Cipolla 2008, "Segmentation and recognition using structure from
motion point clouds"; eleven classes as in Badrinarayanan, Kendall, Cipolla 2017.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from binarize.data.dense import DenseDataset
from binarize.data.images import folder, image_files, read_image
from binarize.data.mask_coding import label_map, label_table
from binarize.data.pairs import paired
from binarize.errors import DataError

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


class CamVid(DenseDataset):
    """CamVid: 367 / 101 / 233 road scenes with eleven classes, void ignored.

    Args:
        root: Folder with ``{train,val,test}/images`` and ``{train,val,test}/labels``.
        split: "train", "val" or "test".
        size: Rows and columns; None keeps 360×480.
        **options: ``augment``, ``normalize``, ``cache``; see
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
        *,
        task: str | None = "segmentation",
        **options: Any,
    ) -> None:
        if task == "depth":
            raise DataError("task", task, "CamVid has no depth", "use task='segmentation'")
        if split not in ("train", "val", "test"):
            raise DataError("split", split, "unknown split", "use 'train', 'val' or 'test'")
        base = folder(root, "root") / split
        self.pairs = paired(image_files(base / "images", "root"), base / "labels", "root")
        self._table = label_table(len(CLASSES), void=(VOID,))
        super().__init__(
            len(self.pairs),
            size=size,
            task="segmentation",
            classes=CLASSES,
            colors=COLORS,
            **options,
        )

    def read(self, index: int) -> dict[str, Tensor]:
        """Read one image and its label map."""
        image, mask = self.pairs[index]
        return {"image": read_image(image), "mask": label_map(mask, self._table)}
