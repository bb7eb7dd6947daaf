"""A folder of pictures and a folder of masks, paired by file name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from binarize.data.dense import IGNORE, DenseDataset
from binarize.data.images import folder, image_files, read_image
from binarize.data.labels import label_map, label_table
from binarize.data.pairs import paired
from binarize.errors import DataError

__all__ = ["ImageMaskFolder", "class_names"]


def class_names(classes: int | Sequence[str] | None, root: Path) -> tuple[str, ...]:
    """Class names from a number, from names, or from ``root/classes.txt`` (one per line).

    Raises:
        DataError: None is given and there is no such file, or the number is out of range.
    """
    if classes is None:
        listed = root / "classes.txt"
        if not listed.is_file():
            raise DataError(
                "classes", None, f"{listed} does not exist", "give the number of classes, or names"
            )
        classes = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines()]
        classes = [name for name in classes if name]
    names = tuple(f"class {i}" for i in range(classes)) if isinstance(classes, int) else classes
    if not 2 <= len(names) <= IGNORE:
        raise DataError("classes", len(names), f"must be from 2 to {IGNORE}", "correct the number")
    return tuple(names)


class ImageMaskFolder(DenseDataset):
    """Pictures and masks from two folders; a mask has its picture's name, but for the suffix.

    Masks are grey or palette PNGs that hold class indices, 255 where a pixel is to be ignored.

    Args:
        images: Folder of pictures.
        masks: Folder of masks.
        size: Rows and columns; None keeps each picture's own (batches of one, then).
        classes: Number of classes, or their names; None reads ``classes.txt`` beside ``images``.
        **options: ``augment``, ``normalize``, ``cache``, ``colors``; see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: A folder is missing or empty, an image has no mask, the classes are unknown;
            on reading, a label outside the classes, or a mask of another size than its image.
    """

    def __init__(
        self,
        images: str | Path,
        masks: str | Path,
        size: tuple[int, int] | None = None,
        *,
        classes: int | Sequence[str] | None = None,
        task: str | None = "segmentation",
        **options: Any,
    ) -> None:
        if task == "depth":
            raise DataError("task", task, "a folder of masks has no depth", "use 'segmentation'")
        files = image_files(images, "images")
        if not files:
            raise DataError("images", str(images), "has no images", "check the folder")
        self.pairs = paired(files, folder(masks, "masks"), "masks")
        names = class_names(classes, Path(images).expanduser().parent)
        self._table = label_table(len(names))
        super().__init__(len(self.pairs), size=size, task="segmentation", classes=names, **options)

    def read(self, index: int) -> dict[str, Tensor]:
        """Read one picture and its mask."""
        image_file, mask_file = self.pairs[index]
        image, mask = read_image(image_file), label_map(mask_file, self._table)
        if image.shape[-2:] != mask.shape[-2:]:
            raise DataError(
                "masks",
                str(mask_file),
                f"its size {tuple(mask.shape)} is not the image's {tuple(image.shape[-2:])}",
                "make the mask at the image's size",
            )
        return {"image": image, "mask": mask}
