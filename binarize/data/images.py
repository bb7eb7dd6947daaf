"""Reading pictures and label maps from disk, and resizing them.

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

__all__ = ["folder", "image_files", "read_image", "read_map", "resize_image", "resize_map"]

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)


def folder(path: str | Path, argument: str) -> Path:
    """Return ``path`` when it is a folder that can be listed.

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
    """Image files of a folder, sorted by name.

    Args:
        path: The folder.
        argument: Name of the caller's argument, for the message.
        suffixes: What their names may end in, in small letters.

    Raises:
        DataError: The folder is missing or unreadable.
    """
    listed = folder(path, argument).iterdir()
    return sorted(file for file in listed if file.suffix.lower() in suffixes and file.is_file())


def read_image(path: Path) -> Tensor:
    """Read an image as viewers show it, as RGB.

    Its EXIF orientation is applied, 16-bit grey is scaled by its range, transparent pixels are
    laid on white, and of several frames the first is taken.

    Returns:
        uint8 tensor of shape (3, H, W).

    Raises:
        DataError: The file is missing, damaged, no image, or has pixels without a range.
    """
    return torch.from_numpy(rgb(decode(path), path)).permute(2, 0, 1)


def read_map(path: Path) -> Tensor:
    """Read a label or depth map that holds one number per pixel.

    Returns:
        Tensor of shape (H, W): uint8, or int32 for files of 16 or 32 bits.

    Raises:
        DataError: The file is missing, damaged, no image, has several channels, or holds
            floating-point numbers.
    """
    array = np.array(decode(path))
    if array.ndim != 2:
        raise DataError(
            "file",
            str(path),
            f"a map needs one number per pixel, this file has {array.shape[-1]} channels",
            "save it as a grey or palette PNG of class indices",
        )
    if array.dtype.kind == "f":
        raise DataError(
            "file",
            str(path),
            "a map needs whole numbers, this file has floating-point ones",
            "save it as a PNG of 8 or 16 bits",
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    elif array.dtype != np.uint8:
        array = array.astype(np.int32)
    return torch.from_numpy(array)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a uint8 picture (3, H, W) to ``size`` (rows, columns), bilinear with antialiasing."""
    if tuple(image.shape[-2:]) == size:
        return image
    return TF.resize(image, list(size), antialias=True)


def resize_map(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map (..., H, W) to ``size`` by taking the nearest pixel centre.

    torchvision's mask kernel takes the pixel's upper left corner instead, which shifts the map
    against the picture by up to half a pixel.
    """
    if tuple(values.shape[-2:]) == size:
        return values
    rows, columns = values.shape[-2:]
    flat = values.reshape(1, -1, rows, columns)
    # The nearest kernel knows uint8 and floats; 24 bits of mantissa hold every label exactly.
    if flat.dtype not in (torch.uint8, torch.float32, torch.float64):
        return resize_map(values.float(), size).to(values.dtype)
    return F.interpolate(flat, size, mode="nearest-exact").reshape(*values.shape[:-2], *size)
