"""A folder of images and a folder of masks, paired by file name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from binarize.data.class_list import read_classes
from binarize.data.dense import DenseDataset, band_options
from binarize.data.images import folder, image_files
from binarize.data.mask_coding import IGNORE, MaskCoding, find_coding
from binarize.data.pairs import paired, same_size
from binarize.errors import DataError

__all__ = ["ImageMaskFolder"]


class ImageMaskFolder(DenseDataset):
    """Images and masks from two folders; a mask has its image's name, except the suffix.

    Masks hold class indices as grey values or palette entries, and 255 for ignored pixels. With two
    classes they may hold any two values instead, such as 0 and 255: the smaller one
    is then class 0, and ``mask_values`` shows what was found. Coloured masks need a
    ``classes.txt`` that gives each class its colour (``NAME R G B`` or ``NAME #RRGGBB``). With one
    class, 0 is the background and 1 (or the larger value) the class.

    With ``task="multilabel"`` a pixel may have several classes: ``masks`` has one folder per
    class, named after it, with masks of two values (0 where the class is absent). An image without
    a file there does not contain the class.

    Args:
        images: Folder of images.
        masks: Folder of masks.
        size: Rows and columns; None keeps each image's own.
        classes: Number of classes, or their names; None reads ``classes.txt`` beside ``images``.
        task: "segmentation" or "multilabel".
        mask_values: The value of each class in the masks, in order; None detects them.
        mask_ignore: Further values to ignore, like 255.
        survey: Masks of all splits to detect the values in; None uses this folder's.
        coding: How masks encode the labels, if known; None detects it.
        **options: ``augment``, ``normalize``, ``bands``, ``cache``, ``colors``; see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: A folder is missing or empty, an image has no mask, the classes are unknown;
            on reading, a label outside the classes, or a mask and image of different size.
    """

    def __init__(
        self,
        images: str | Path,
        masks: str | Path,
        size: tuple[int, int] | None = None,
        *,
        classes: int | Sequence[str] | None = None,
        task: str | None = "segmentation",
        mask_values: Sequence[int] | None = None,
        mask_ignore: Sequence[int] = (),
        survey: Sequence[Path] | None = None,
        coding: MaskCoding | None = None,
        **options: Any,
    ) -> None:
        if task == "depth":
            raise DataError("task", task, "a folder of masks has no depth", "use 'segmentation'")
        files = image_files(images, "images")
        if not files:
            raise DataError("images", str(images), "has no images", "check the folder")
        listed = read_classes(classes, Path(images).expanduser().parent)
        top = folder(masks, "masks")
        task = task or "segmentation"
        self.pairs: list[tuple[Path, Any]]
        if task == "multilabel":
            self.pairs = _by_class(files, top, listed.names)
            every = [mask for _, found in self.pairs for mask in found.values()]
        else:
            self.pairs = list(paired(files, top, "masks"))
            every = [mask for _, mask in self.pairs] if survey is None else list(survey)
        labels = 2 if task == "multilabel" else max(2, len(listed.names))
        if task != "multilabel":
            coding = coding or listed.coding()
        said = _coding(mask_values, mask_ignore, labels)
        self._coding = said or coding or find_coding(every, labels)
        if listed.colors is not None:
            options.setdefault("colors", listed.colors)
        band_options(options, files)
        super().__init__(len(self.pairs), size=size, task=task, classes=listed.names, **options)

    @property
    def mask_values(self) -> list[int] | None:
        """Return the value of each label in the masks; None if values are the labels."""
        codes = {label: code for code, label in self._coding.labels.items() if label != IGNORE}
        values = [codes[label] for label in sorted(codes)]
        return None if self._coding.by_color or values == sorted(codes) else values

    @property
    def note(self) -> str | None:
        """Return what was detected about the masks, as one line."""
        if not self._coding.found:
            return None
        names = self.classes if len(self.classes) > 1 else ("background", *self.classes)
        shown = ", ".join(
            f"{value} is {name}" for value, name in zip(self.mask_values or (), names, strict=False)
        )
        return f"masks hold two values: {shown} (another order: --mask-values)"

    def files(self, index: int) -> dict[str, list[Path]]:
        """Return the image file and the mask files of a sample."""
        image, found = self.pairs[index]
        return {"image": [image], "mask": [found] if isinstance(found, Path) else [*found.values()]}

    def read(self, index: int) -> dict[str, Tensor]:
        """Read one image and its mask."""
        image_file, found = self.pairs[index]
        image = self.read_image(image_file)
        if self.task != "multilabel":
            return {"image": image, "mask": self._mask(found, image)}
        absent = torch.zeros(image.shape[-2:], dtype=torch.uint8)
        masks = [self._mask(found[n], image) if n in found else absent for n in self.classes]
        return {"image": image, "mask": torch.stack(masks)}

    def _mask(self, path: Path, image: Tensor) -> Tensor:
        mask = self._coding.read(path)
        same_size(image, mask, path, "masks")
        return mask


def _by_class(
    files: Sequence[Path], masks: Path, names: Sequence[str]
) -> list[tuple[Path, dict[str, Path]]]:
    listed = {name: {f.stem: f for f in image_files(masks / name, "masks")} for name in names}
    return [
        (file, {name: known[file.stem] for name, known in listed.items() if file.stem in known})
        for file in files
    ]


def _coding(values: Sequence[int] | None, ignored: Sequence[int], labels: int) -> MaskCoding | None:
    if values is None:
        if not ignored:
            return None
        values = range(labels)
    if len(values) != labels or len({*values, *ignored}) != labels + len(ignored):
        raise DataError(
            "mask_values",
            [*values, *ignored],
            f"must be {labels} different values, one for each class",
            "give them in the classes' order" + (", the background first" if labels == 2 else ""),
        )
    coded = {value: label for label, value in enumerate(values)}
    return MaskCoding({IGNORE: IGNORE, **dict.fromkeys(ignored, IGNORE), **coded})
