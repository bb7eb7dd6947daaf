"""NYU Depth v2 in lists of raw frames: 24 K synchronised pairs to train, 654 to test.

Silberman, Hoiem, Kohli, Fergus 2012; the frames and lists that Lee et al. 2019 (BTS) made of the
raw recordings, which later depth networks also use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from binarize.data.augment import BTS_INDOOR
from binarize.data.labelled import check_split
from binarize.data.pairs import reject
from binarize.data.sets.depth_lists import ListedDepth, lists_of, need_list, read_list
from binarize.data.sets.nyuv2 import COLUMNS, MAX_DEPTH, ROWS
from binarize.errors import DataError

__all__ = ["NYUv2Lists"]

METRES_PER_UNIT = 0.001
STEMS = ("nyudepthv2", "nyu")
_FOLDERS = {
    "train": ("", "sync", "official_splits/train", "train"),
    "test": ("", "official_splits/test", "test"),
}


class NYUv2Lists(ListedDepth):
    """NYUv2: indoor frames with depth in metres (up to 10), at the lines of a list.

    Images and depth are always cropped to rows 45..470 and columns 41..600 (Eigen's crop) before
    resizing, in training and in evaluation. Depth is 16-bit PNGs in millimetres; 0 is unknown.

    Args:
        root: Folder of the listed paths, or the one with ``sync`` and ``official_splits/test``.
        split: "train" or "test" ("val" is the test split).
        size: Rows and columns; None keeps the crop's 426×560.
        lists: Folder with ``nyudepthv2_train_files_with_gt.txt`` and
            ``nyudepthv2_test_files_with_gt.txt`` ("IMAGE DEPTH FOCAL"); None looks in ``root``.
        task: "depth".
        **options: ``augment``, ``normalize``, ``cache``, ``fit``; see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: The list or a listed file is missing, or the task has no targets here; on
            reading, an image and its depth of different size.
    """

    bts = BTS_INDOOR

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] | None = (416, 544),
        *,
        lists: str | Path | None = None,
        task: str | None = "depth",
        **options: Any,
    ) -> None:
        if task not in (None, "depth"):
            rule = "the lists of NYUv2 have depth only"
            raise DataError("task", task, rule, "use task='depth', or the labelled images")
        if split != "val":
            check_split(split, ("train", "test"))
        top, places = lists_of(root, lists)
        name = "train" if split == "train" else "test"
        listed = need_list(places, STEMS, name)
        lines = read_list(listed)
        places = [top / folder for folder in _FOLDERS[name]]
        base = next((place for place in places if (place / lines[0][0]).is_file()), top)
        pairs = []
        for words in lines:
            pair = (base / words[0], base / words[1])
            missing = next((file for file in pair if not file.is_file()), None)
            if missing is None:
                pairs.append(pair)
                continue
            rule = f"has no file {missing.relative_to(base)}, which {listed.name} lists"
            remedy = "complete the data set: the listed paths, in sync/ or official_splits/"
            reject(DataError("root", str(root), rule, remedy))
        super().__init__(
            pairs,
            size=size,
            max_depth=MAX_DEPTH,
            depth_scale=METRES_PER_UNIT,
            **options,
        )

    def read(self, index: int) -> dict[str, Tensor]:
        """Read one image and its depth, cropped."""
        return {key: value[..., ROWS, COLUMNS] for key, value in super().read(index).items()}
