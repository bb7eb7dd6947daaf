"""Cityscapes, the urban street scenes.

Cordts, Omran, Ramos et al. 2016, "The Cityscapes dataset for semantic urban scene understanding";
the 19 classes of its benchmark.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from binarize.data.images import folder
from binarize.data.labelled import LabelledPairs, check_split
from binarize.data.mask_coding import IGNORE
from binarize.data.pairs import reject
from binarize.errors import DataError

__all__ = ["Cityscapes"]

# Name, label in the files (_labelIds.png), colour.
CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
LARGEST_LABEL = 33
_IMAGE, _LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"
_LAYOUT = (
    "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there, which makes "
    f"leftImg8bit/SPLIT/CITY/*{_IMAGE} and gtFine/SPLIT/CITY/*{_LABELS}"
)


class Cityscapes(LabelledPairs):
    """Cityscapes: 2975 / 500 finely annotated street scenes with 19 classes.

    The other labels, such as the ego vehicle, are ignored, as in the benchmark.

    Args:
        root: Folder with ``leftImg8bit`` and ``gtFine``.
        split: "train" or "val" (the labels of the test split are not public).
        size: Rows and columns; None keeps 1024×2048.
        **options: ``task``, ``augment``, ``normalize``, ``cache``, ``fit``; see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: A folder is missing, an image has no labels, or the task has no targets here; on
            reading, a label outside 0..33 and 255.
    """

    classes = tuple(name for name, _, _ in CLASSES)
    num_classes = len(CLASSES)

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] | None = (512, 1024),
        **options: Any,
    ) -> None:
        check_split(split, ("train", "val"))
        top = folder(root, "root")
        for part in ("leftImg8bit", "gtFine"):
            if not (top / part / split).is_dir():
                raise DataError("root", str(root), f"has no folder {part}/{split}", _LAYOUT)
        images = sorted((top / "leftImg8bit" / split).glob(f"*/*{_IMAGE}"))
        if not images:
            raise DataError("root", str(root), f"has no images in leftImg8bit/{split}", _LAYOUT)
        pairs = []
        for image in images:
            name = image.name.removesuffix(_IMAGE) + _LABELS
            labels = top / "gtFine" / split / image.parent.name / name
            if labels.is_file():
                pairs.append((image, labels))
            else:
                rule = f"image {image.name} has no labels {name}"
                reject(DataError("root", str(root), rule, _LAYOUT))
        table = torch.full((256,), -1, dtype=torch.int16)
        table[: LARGEST_LABEL + 1] = IGNORE
        table[IGNORE] = IGNORE
        for train_label, (_, label, _) in enumerate(CLASSES):
            table[label] = train_label
        colors = [color for _, _, color in CLASSES]
        super().__init__(pairs, table, size=size, classes=self.classes, colors=colors, **options)
