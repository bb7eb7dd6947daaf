"""Images without labels, alone or mixed with labelled ones, for distillation from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from binarize.data.dense import IGNORE, DenseDataset, band_options
from binarize.data.images import image_files
from binarize.errors import DataError

__all__ = ["PartlyLabelled", "UnlabelledFolder"]


class UnlabelledFolder(DenseDataset):
    """The images of a folder, for training from a teacher only. Items have just ``image``.

    Args:
        images: Folder of images.
        size: Rows and columns; None keeps each image's own.
        task: What the network predicts; informative only.
        classes: Names of the classes, or their number, if known.
        **options: ``augment``, ``normalize``, ``bands``, ``cache``, ``max_depth``, ``colors``; see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: The folder is missing or has no images.
    """

    def __init__(
        self,
        images: str | Path,
        size: tuple[int, int] | None = None,
        *,
        task: str | None = None,
        classes: int | Sequence[str] = (),
        **options: Any,
    ) -> None:
        self.paths = image_files(images, "images")
        if not self.paths:
            raise DataError("images", str(images), "has no images", "check the folder")
        names = [f"class {i}" for i in range(classes)] if isinstance(classes, int) else classes
        band_options(options, self.paths)
        super().__init__(len(self.paths), size=size, task=task, classes=names, **options)
        self.keys = frozenset({"image"})

    @property
    def note(self) -> str:
        """Return a line on what is special about this data set."""
        return f"{len(self.paths)} images without labels: only the teacher supervises them"

    def files(self, index: int) -> dict[str, list[Path]]:
        """Return the image file of a sample."""
        return {"image": [self.paths[index]]}

    def read(self, index: int) -> dict[str, Tensor]:
        """Read one image."""
        return {"image": self.read_image(self.paths[index])}


class PartlyLabelled(Dataset[dict[str, Tensor]]):
    """A labelled and an unlabelled data set combined, to be shuffled together.

    Items have ``labelled``, true or false, and a placeholder target where unlabelled. All other
    attributes (``classes``, ``class_counts()``, ...) are those of the labelled data set.

    Args:
        labelled: The data set with labels.
        unlabelled: Images of the same size.

    Raises:
        DataError: The sizes, the way to fit them or the normalisation differ.
    """

    def __init__(self, labelled: DenseDataset, unlabelled: DenseDataset) -> None:
        for name in ("size", "normalize", "fit"):
            ours, theirs = getattr(labelled, name), getattr(unlabelled, name)
            if ours != theirs:
                raise DataError(
                    "unlabelled",
                    f"{name}={theirs}",
                    f"the labelled images have {name}={ours}",
                    "give both the same",
                )
        self.labelled = labelled
        self.unlabelled = unlabelled

    def __getattr__(self, name: str) -> Any:
        """Return the labelled data set's attribute."""
        if name.startswith("__") or name in ("labelled", "unlabelled"):
            raise AttributeError(name)
        return getattr(self.labelled, name)

    def __len__(self) -> int:
        """Return the total number of images."""
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one sample."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        index %= len(self)
        known = index < len(self.labelled)
        if known:
            sample = self.labelled[index]
        else:
            sample = self.unlabelled[index - len(self.labelled)]
            rows, columns = sample["image"].shape[-2:]
            if "mask" in self.labelled.keys:
                several = self.labelled.task == "multilabel"
                shape = (self.labelled.num_classes, rows, columns) if several else (rows, columns)
                sample["mask"] = torch.full(shape, IGNORE, dtype=torch.int64)
            if "depth" in self.labelled.keys:
                sample["depth"] = torch.zeros(1, rows, columns)
            if "normal" in self.labelled.keys:
                sample["normal"] = torch.zeros(3, rows, columns)
            if "edge" in self.labelled.keys:
                sample["edge"] = torch.full((rows, columns), IGNORE, dtype=torch.int64)
        return {**sample, "labelled": torch.tensor(known)}

    def preload(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Read all images into memory.

        Args:
            progress: Called with (samples done, total samples) after each one.
        """
        first = len(self.labelled)
        tell = progress or (lambda done, count: None)
        self.labelled.preload(lambda done, _: tell(done, len(self)))
        self.unlabelled.preload(lambda done, _: tell(first + done, len(self)))
