"""Lists of images and depth maps, as depth networks come with them, and the crops they use.

A list has one sample per line: "IMAGE DEPTH FOCAL" with paths below a folder of the data set (DEPTH
may be "None"), or "DRIVE FRAME SIDE" with the side l or r for KITTI.

Shape legend: H, W rows and columns of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from binarize.data.dense import DenseDataset
from binarize.data.images import folder, read_image, read_map
from binarize.data.pairs import same_size
from binarize.errors import DataError

__all__ = [
    "EIGEN",
    "GARG",
    "ListedDepth",
    "find_list",
    "list_names",
    "lists_of",
    "need_list",
    "read_list",
    "window_of",
]

Shares = tuple[float, float, float, float]

GARG: Shares = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
"""Rows and columns from .. to that count, as shares of the image (Garg et al. 2016)."""
EIGEN: Shares = (0.3324324, 0.91351351, 0.0359477, 0.96405229)
"""The same of Eigen et al. 2014, for KITTI."""


class ListedDepth(DenseDataset):
    """Images and depth maps from the pairs of files that a list names; a set's class finds them.

    Args:
        pairs: Image file and depth file of each sample.
        **options: Arguments of :class:`~binarize.data.dense.DenseDataset`.
    """

    def __init__(self, pairs: Sequence[tuple[Path, Path]], **options: Any) -> None:
        self.pairs = list(pairs)
        super().__init__(len(self.pairs), task="depth", **options)

    def files(self, index: int) -> dict[str, list[Path]]:
        """Return the image file and the depth file of a sample."""
        image, depth = self.pairs[index]
        return {"image": [image], "depth": [depth]}

    def read(self, index: int) -> dict[str, Tensor]:
        """Read one image and its depth map, which have the same size."""
        image_file, depth_file = self.pairs[index]
        image, depth = read_image(image_file), read_map(depth_file).unsqueeze(0)
        same_size(image, depth, depth_file, "depth")
        return {"image": image, "depth": depth}


def window_of(shares: Shares, rows: int, columns: int) -> tuple[slice, slice]:
    """Return the rows and columns of an image that a crop covers."""
    top, bottom, left, right = shares
    return (
        slice(int(top * rows), int(bottom * rows)),
        slice(int(left * columns), int(right * columns)),
    )


def list_names(stems: Sequence[str], split: str) -> list[str]:
    """Return the file names under which a split's list is looked for."""
    ends = ("files_with_gt.txt", "files.txt")
    named = [f"{stem}_{split}_{end}" for stem in stems for end in ends]
    return [*named, *(f"{split}_{end}" for end in ends), f"{split}.txt"]


def need_list(places: Sequence[Path], stems: Sequence[str], split: str, *others: str) -> Path:
    """Return a split's list, as :func:`find_list` does.

    Args:
        places: Folders to look in.
        stems: Beginnings of its name.
        split: The split.
        *others: Other names that the message mentions.

    Raises:
        DataError: There is none.
    """
    found = find_list(places, stems, split)
    if found is None:
        names = " or ".join((list_names(stems, split)[0], *others))
        rule = f"has no list of the {split} split"
        raise DataError("lists", str(places[0]), rule, f"put {names} there (--lists DIR)")
    return found


def find_list(places: Sequence[Path], stems: Sequence[str], split: str) -> Path | None:
    """Return a split's list, the first of :func:`list_names` in the first folder that has one."""
    names = list_names(stems, split)
    return next((p / name for p in places for name in names if (p / name).is_file()), None)


def read_list(path: Path) -> list[list[str]]:
    """Read a list: the words of each line, without leading slashes.

    Raises:
        DataError: It cannot be read, is empty, or a line has fewer than two words.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("lists", str(path), "cannot be read", "give another file") from error
    found = [[word.lstrip("/") for word in line.split()] for line in lines if line.strip()]
    if not found:
        raise DataError("lists", str(path), "lists nothing", "give the complete list")
    short = next((number for number, words in enumerate(found, 1) if len(words) < 2), None)
    if short is not None:
        raise DataError(
            "lists",
            str(path),
            f"entry {short} ({found[short - 1][0]}) names one file only",
            "write IMAGE DEPTH, one pair per line",
        )
    return found


def lists_of(root: str | Path, lists: str | Path | None) -> tuple[Path, list[Path]]:
    """Return a data set's folder and the folders of its lists.

    Raises:
        DataError: One of them is missing.
    """
    top = folder(root, "root")
    return top, [top, top / "splits" / "eigen"] if lists is None else [folder(lists, "lists")]
