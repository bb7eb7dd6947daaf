"""Read images and label maps from disk, and resize them.

Shape legend: H, W rows and columns in pixels; images are (3, H, W), label maps (H, W).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from binarize.data.decoding import decode, rgb
from binarize.errors import DataError

__all__ = [
    "covering",
    "folder",
    "image_files",
    "read_image",
    "read_map",
    "resize_image",
    "resize_map",
]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def folder(path: str | Path, argument: str) -> Path:
    """Return ``path`` if it is a folder that can be listed.

    Args:
        path: The folder.
        argument: Name of the caller's argument, for the message.

    Raises:
        DataError: The folder is missing, is a file, or cannot be listed.
    """
    found = Path(path).expanduser()
    if not found.exists():
        raise DataError(argument, str(path), "no such folder", "give the path of the data set")
    if not found.is_dir():
        raise DataError(argument, str(path), "is not a folder", "give the path of the data set")
    try:
        next(found.iterdir(), None)
    except OSError as error:
        reason = error.strerror or "unreadable"
        raise DataError(
            argument, str(path), f"the folder cannot be read ({reason})", "check its permissions"
        ) from error
    return found


def image_files(
    path: str | Path, argument: str, suffixes: Collection[str] = IMAGE_SUFFIXES
) -> list[Path]:
    """Return the image files of a folder, sorted by name.

    Args:
        path: The folder.
        argument: Name of the caller's argument, for the message.
        suffixes: Allowed suffixes, in lower case.

    Raises:
        DataError: The folder is missing or unreadable.
    """
    listed = folder(path, argument).iterdir()
    return sorted(file for file in listed if file.suffix.lower() in suffixes and file.is_file())


def read_image(path: Path) -> Tensor:
    """Read an image as viewers show it, in RGB.

    Its EXIF orientation is applied, 16-bit grey is scaled by its range, transparent pixels are
    composited on white, and the first of several frames is taken.

    Returns:
        uint8 tensor of shape (3, H, W).

    Raises:
        DataError: The file is missing, damaged, not an image, or its pixel type has no range.
    """
    return torch.from_numpy(rgb(decode(path), path)).permute(2, 0, 1)


def read_map(path: Path) -> Tensor:
    """Read a label or depth map with one number per pixel.

    Returns:
        Tensor of shape (H, W): uint8, or int32 for files of 16 or 32 bits.

    Raises:
        DataError: The file is missing, damaged, not an image, has several channels, or holds
            floating-point numbers.
    """
    array = np.array(decode(path))
    if array.ndim != 2:
        raise DataError(
            "file",
            str(path),
            f"a label map needs one number per pixel, this file has {array.shape[-1]} channels",
            "save it as a grey or palette PNG of class indices",
        )
    if array.dtype.kind == "f":
        raise DataError(
            "file",
            str(path),
            "a label map needs integers, this file has floating-point numbers",
            "save it as an 8-bit or 16-bit PNG",
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    elif array.dtype != np.uint8:
        array = array.astype(np.int32)
    return torch.from_numpy(array)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a uint8 image (3, H, W) to ``size`` (rows, columns), bilinear with antialiasing."""
    if tuple(image.shape[-2:]) == size:
        return image
    return TF.resize(image, list(size), antialias=True)


def covering(rows: int, columns: int, size: tuple[int, int], multiple: int = 32) -> tuple[int, int]:
    """Return the shape of an image that keeps its aspect ratio and covers ``size``.

    Args:
        rows: The image's rows.
        columns: The image's columns.
        size: Rows and columns to cover.
        multiple: Rows and columns become multiples of it, unless ``size`` has them already.
    """
    scale = max(size[0] / rows, size[1] / columns)
    shape = (max(size[0], round(rows * scale)), max(size[1], round(columns * scale)))
    up = [
        s if s == least else -(-s // multiple) * multiple
        for s, least in zip(shape, size, strict=True)
    ]
    return up[0], up[1]


def resize_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a label or depth map (..., H, W) to ``size`` by the nearest pixel centre.

    torchvision's mask kernel takes the pixel's upper left corner instead, which shifts the map
    against the image by up to half a pixel.
    """
    if tuple(values.shape[-2:]) == size:
        return values
    rows, columns = values.shape[-2:]
    flat = values.reshape(1, -1, rows, columns)
    # The nearest kernel supports uint8 and floats; a 24-bit mantissa holds every label exactly.
    if flat.dtype not in (torch.uint8, torch.float32, torch.float64):
        return resize_map(values.float(), size).to(values.dtype)
    return F.interpolate(flat, size, mode="nearest-exact").reshape(*values.shape[:-2], *size)
