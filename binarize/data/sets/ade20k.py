"""ADE20K, the scene parsing benchmark with 150 classes.

Zhou, Zhao, Puig, Fidler, Barriuso, Torralba 2017, "Scene parsing through ADE20K dataset".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from binarize.data.images import folder, image_files
from binarize.data.labelled import LabelledPairs, check_split
from binarize.data.mask_coding import IGNORE, label_table
from binarize.data.pairs import paired
from binarize.errors import DataError

__all__ = ["ADE20K"]

COUNT = 150
_FOLDERS = {"train": "training", "val": "validation"}
_LAYOUT = (
    "unpack ADEChallengeData2016.zip, which makes images/{training,validation}/*.jpg, "
    "annotations/{training,validation}/*.png and objectInfo150.txt"
)


class ADE20K(LabelledPairs):
    """ADE20K: 20,210 / 2,000 scenes with 150 classes; label 0 of the files is ignored.

    Class names are the first ones of each line in the data set's ``objectInfo150.txt``.

    Args:
        root: The folder ``ADEChallengeData2016``, or the one that contains it.
        split: "train" or "val".
        size: Rows and columns; None keeps each image's own.
        fit: By default "crop": images keep their aspect ratio.
        **options: ``task``, ``augment``, ``normalize``, ``cache``; see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: A folder is missing, an image has no labels, ``objectInfo150.txt`` is damaged, or
            the task has no targets here; on reading, a label outside 0..150.
    """

    num_classes = COUNT

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] | None = (480, 480),
        *,
        fit: str = "crop",
        **options: Any,
    ) -> None:
        check_split(split, tuple(_FOLDERS))
        top = folder(root, "root")
        if (top / "ADEChallengeData2016").is_dir():
            top /= "ADEChallengeData2016"
        for part in ("images", "annotations"):
            if not (top / part / _FOLDERS[split]).is_dir():
                rule = f"has no folder {part}/{_FOLDERS[split]}"
                raise DataError("root", str(root), rule, _LAYOUT)
        images = image_files(top / "images" / _FOLDERS[split], "root")
        pairs = paired(images, top / "annotations" / _FOLDERS[split], "root", kind="label map")
        names = _class_names(top / "objectInfo150.txt")
        table = label_table(COUNT + 1).sub(1)
        table[table < 0] = -1
        table[[0, IGNORE]] = IGNORE
        super().__init__(pairs, table, size=size, fit=fit, classes=names, **options)


def _class_names(path: Path) -> list[str]:
    """Read the names from the last column of a table with a header; numbers where it is missing."""
    try:
        lines = path.read_text(encoding="utf-8").strip().splitlines()[1:]
    except FileNotFoundError:
        return [f"class {number}" for number in range(1, COUNT + 1)]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("root", str(path), "cannot be read", "replace the file") from error
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines]
    if len(names) != COUNT or not all(names):
        rule = f"has {len(names)} lines of classes, not {COUNT}"
        raise DataError("root", str(path), rule, "replace the file with the data set's")
    return names
