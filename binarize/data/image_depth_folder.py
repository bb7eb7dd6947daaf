"""A folder of images and a folder of depth maps, paired by file name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binarize.data.dense import DenseDataset, band_options
from binarize.data.images import IMAGE_SUFFIXES, folder, image_files, read_map
from binarize.data.pairs import paired, same_size
from binarize.errors import DataError

__all__ = ["ImageDepthFolder"]


class ImageDepthFolder(DenseDataset):
    """Images and depth maps from two folders; a depth map has its image's name, except the suffix.

    A depth map is a PNG or TIFF file of integers in units of ``depth_scale`` (0.001 for
    millimetres), or a NumPy file (``.npy``, (H, W)), in metres if it holds floating-point numbers
    and no ``depth_scale`` is given. 0, NaN and infinity mean unknown depth.

    Args:
        images: Folder of images.
        depth: Folder of depth maps.
        size: Rows and columns; None keeps each image's own.
        depth_scale: Metres per unit of the files.
        max_depth: Largest depth in metres; larger values do not count.
        **options: ``augment``, ``normalize``, ``bands``, ``cache``; see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: A folder is missing or empty, an image has no depth map, the unit is unknown; on
            reading, a negative depth, or a depth map and image of different size.
    """

    def __init__(
        self,
        images: str | Path,
        depth: str | Path,
        size: tuple[int, int] | None = None,
        *,
        depth_scale: float | None = None,
        max_depth: float | None = None,
        **options: Any,
    ) -> None:
        files = image_files(images, "images")
        if not files:
            raise DataError("images", str(images), "has no images", "check the folder")
        for name, value in (("depth_scale", depth_scale), ("max_depth", max_depth)):
            if value is not None and not 0 < value < float("inf"):
                raise DataError(name, value, "must be positive", "give metres, e.g. 0.001 or 10")
        suffixes = frozenset({".npy", *IMAGE_SUFFIXES})
        self.pairs = paired(files, folder(depth, "depth"), "depth", suffixes, "depth map")
        if depth_scale is None and not all(map(_metres, (path for _, path in self.pairs))):
            raise DataError(
                "depth_scale",
                None,
                "the depth maps are integers in an unknown unit",
                "give metres per unit, e.g. 0.001 for millimetres (--depth-scale)",
            )
        options.pop("task", None)
        band_options(options, files)
        super().__init__(
            len(self.pairs),
            size=size,
            task="depth",
            max_depth=10.0 if max_depth is None else max_depth,
            depth_scale=1.0 if depth_scale is None else depth_scale,
            **options,
        )

    def files(self, index: int) -> dict[str, list[Path]]:
        """Return the image file and the depth file of a sample."""
        image, depth = self.pairs[index]
        return {"image": [image], "depth": [depth]}

    def read(self, index: int) -> dict[str, Tensor]:
        """Read one image and its depth map, in the file's unit."""
        image_file, path = self.pairs[index]
        image = self.read_image(image_file)
        depth = _load(path) if path.suffix == ".npy" else read_map(path)
        same_size(image, depth, path, "depth")
        if bool((depth < 0).any()):
            raise DataError("depth", float(depth.min()), f"{path} is negative", "set it to 0")
        return {"image": image, "depth": depth.unsqueeze(0)}


def _open(path: Path, mode: Any) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            "file", str(path), "cannot be read as a NumPy file", "save it with numpy.save"
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fui":
        raise DataError("file", str(path), "is not numeric", "save it with numpy.save")
    return array


def _metres(path: Path) -> bool:
    return path.suffix == ".npy" and _open(path, "r").dtype.kind == "f"


def _load(path: Path) -> Tensor:
    array = _open(path, None).squeeze().astype(np.float32)
    if array.ndim != 2:
        raise DataError("file", str(path), f"has the shape {array.shape}", "save (H, W)")
    return torch.from_numpy(np.nan_to_num(array, posinf=0.0, neginf=0.0))
