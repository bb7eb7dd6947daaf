"""NYU Depth v2, the indoor data set with depth and labels.

Silberman, Hoiem, Kohli, Fergus 2012, "Indoor segmentation and support inference from RGBD
images"; the official split of 795 / 654 labelled images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from binarize.data.augment import BTS_INDOOR
from binarize.data.dense import IGNORE, DenseDataset
from binarize.data.images import folder, read_image, read_map
from binarize.data.labelled import check_split
from binarize.data.mask_coding import label_map
from binarize.data.normals import normals_from_depth
from binarize.errors import DataError

__all__ = ["NYUv2"]

CLASSES = (
    "bed",
    "books",
    "ceiling",
    "chair",
    "floor",
    "furniture",
    "objects",
    "picture",
    "sofa",
    "table",
    "tv",
    "wall",
    "window",
)
FORTY = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror"),
    *("floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel"),
    *("shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp"),
    *("bathtub", "bag", "other structure", "other furniture", "other prop"),
)
"""The forty classes of Gupta, Arbelaez, Malik 2013, in the order of the files' labels."""
# Label 0..38 of the files (NYU40 less one) to 1..13 in the order of CLASSES.
_TO_THIRTEEN = (
    *(12, 5, 6, 1, 4, 9, 10, 12, 13, 6, 8, 6, 13, 10, 6, 13, 6, 7, 7, 5),
    *(7, 3, 2, 6, 11, 7, 7, 7, 7, 7, 7, 6, 7, 7, 7, 7, 7, 7, 6),
)
METRES_PER_UNIT = 1 / 25.5
MAX_DEPTH = 10.0
# The images have a white border; these rows and columns (Eigen's crop) lie inside it.
ROWS = slice(45, 471)
COLUMNS = slice(41, 601)


def label_table(classes: int) -> Tensor:
    """Return the table from the files' labels to 13 or 40 classes; 39 and 255 are ignored."""
    table = torch.full((256,), -1, dtype=torch.int16)
    known = len(_TO_THIRTEEN)
    thirteen = torch.tensor(_TO_THIRTEEN, dtype=torch.int16) - 1
    table[:known] = thirteen if classes == 13 else torch.arange(known, dtype=torch.int16)
    table[known] = IGNORE  # unlabelled pixels and other props alike
    table[IGNORE] = IGNORE
    return table


# Of the data set's color camera, for its 640x480 pixels (Silberman et al. 2012, toolbox).
_CAMERA = torch.tensor([[518.858, 0.0, 325.582], [0.0, 519.470, 253.736], [0.0, 0.0, 1.0]])
# Neighbours this far apart: the depth of direct ones is too noisy.
_STEP = 3


class NYUv2(DenseDataset):
    """NYUv2: indoor images with depth in metres (0.7 to 10), and thirteen or forty classes.

    Images and targets are always cropped to rows 45..470 and columns 41..600 before resizing, in
    training and in evaluation, to remove the white border.

    Args:
        root: Folder with ``images``, ``depth``, ``labels``, ``train.txt`` and ``test.txt``.
        split: "train" or "test" ("val" is the test split: the data set has no other).
        size: Rows and columns; None keeps the crop's 426×560.
        task: "depth", "segmentation", "normals" (from depth), "edges" (of the labels), several
            joined by "+", or None for the first two.
        classes: 13 (Couprie, Farabet, Najman, LeCun 2013), or the 40 that the files have. The last
            of these, other props, shares a label with unlabelled pixels and is ignored like them.
        **options: ``augment``, ``normalize``, ``cache``; see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: A folder or split file is missing, or the number of classes is another; on
            reading, a file is missing or has a label outside 0..39.
    """

    classes = CLASSES
    num_classes = len(CLASSES)
    bts = BTS_INDOOR

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] | None = (120, 160),
        *,
        task: str | None = "depth",
        classes: int = len(CLASSES),
        **options: Any,
    ) -> None:
        if classes not in (len(CLASSES), len(FORTY)):
            raise DataError("classes", classes, "NYUv2 has 13 or 40 classes", "use one of them")
        names = {"train": "train.txt", "val": "test.txt", "test": "test.txt"}
        if split != "val":
            check_split(split, ("train", "test"))
        self.root = folder(root, "root")
        for part in ("images", "depth", "labels"):
            folder(self.root / part, "root")
        listed = self.root / names[split]
        try:
            self.stems = listed.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                "root", str(root), f"{listed.name} cannot be read", "complete the data set"
            ) from error
        self._table = label_table(classes)
        self.never_labelled = FORTY[-1:] if classes == len(FORTY) else ()
        super().__init__(
            len(self.stems),
            size=size,
            task=task,
            classes=FORTY if classes == len(FORTY) else CLASSES,
            max_depth=MAX_DEPTH,
            depth_scale=METRES_PER_UNIT,
            **options,
        )

    def files(self, index: int) -> dict[str, list[Path]]:
        """Return the files of a sample that the task needs."""
        stem = self.stems[index]
        named = {"image": f"images/{stem}.jpg"}
        named |= {"depth": f"depth/{stem}.png", "mask": f"labels/{stem}.png"}
        return {key: [self.root / name] for key, name in named.items() if key in self.keys}

    def read(self, index: int) -> dict[str, Tensor]:
        """Read one image and the task's targets, cropped."""
        stem = self.stems[index]
        sample = {"image": read_image(self.root / "images" / f"{stem}.jpg")}
        if "depth" in self.keys:
            sample["depth"] = read_map(self.root / "depth" / f"{stem}.png").unsqueeze(0)
        if "normal" in self.keys:
            depth = read_map(self.root / "depth" / f"{stem}.png")[None, None].float()
            metres = depth * METRES_PER_UNIT
            sample["normal"] = normals_from_depth(metres, intrinsics=_CAMERA, step=_STEP)[0]
        if "mask" in self.keys:
            sample["mask"] = label_map(self.root / "labels" / f"{stem}.png", self._table)
        return {key: value[..., ROWS, COLUMNS] for key, value in sample.items()}
