"""Images and label maps in pairs of files, read through one table of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from binarize.data.dense import DenseDataset
from binarize.data.images import read_image
from binarize.data.mask_coding import label_map
from binarize.data.pairs import same_size
from binarize.errors import DataError

__all__ = ["LabelledPairs", "check_split"]


class LabelledPairs(DenseDataset):
    """Images and label maps from pairs of files; a set's class finds them.

    Args:
        pairs: Image file and label file of each sample.
        table: New label of each label in the files, -1 where a label is not allowed; see
            :func:`~binarize.data.mask_coding.label_table`.
        size: Rows and columns; None keeps each image's own.
        task: "segmentation".
        **options: ``classes``, ``colors``, ``augment``, ``normalize``, ``cache``, ``fit``; see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: The task needs other targets than labels.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        table: Tensor,
        *,
        size: tuple[int, int] | None,
        task: str | None = "segmentation",
        **options: Any,
    ) -> None:
        if task not in (None, "segmentation"):
            lacks = "depth" if task == "depth" else f"targets for {task}"
            raise DataError(
                "task", task, f"{type(self).__name__} has no {lacks}", "use task='segmentation'"
            )
        self.pairs = list(pairs)
        self._table = table
        super().__init__(len(self.pairs), size=size, task="segmentation", **options)

    def files(self, index: int) -> dict[str, list[Path]]:
        """Return the image file and the label file of a sample."""
        image, mask = self.pairs[index]
        return {"image": [image], "mask": [mask]}

    def read(self, index: int) -> dict[str, Tensor]:
        """Read one image and its label map."""
        image_file, mask_file = self.pairs[index]
        image, mask = read_image(image_file), self.labels(mask_file)
        same_size(image, mask, mask_file, "masks")
        return {"image": image, "mask": mask}

    def labels(self, path: Path) -> Tensor:
        """Read a label map (H, W), uint8."""
        return label_map(path, self._table)


def check_split(split: str, known: Sequence[str]) -> None:
    """Reject the name of a split that a data set does not have.

    Raises:
        DataError: It has no such split.
    """
    if split not in known:
        *others, last = map(repr, known)
        names = f"{', '.join(others)} or {last}" if others else last
        raise DataError("split", split, "unknown split", f"use {names}")
