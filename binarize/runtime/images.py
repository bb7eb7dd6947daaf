"""Image pre- and post-processing in numpy.

Shape legend: H, W rows and columns; images are (H, W, 3), feature maps (N, C, H, W).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from binarize.errors import DataError

__all__ = ["as_image", "normalisation", "resize", "shrink"]

_NAMED = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def normalisation(name: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation per channel, for values from 0 to 1.

    Raises:
        DataError: The file names an unknown normalisation.
    """
    mean, std = _NAMED.get(name, (None, None)) if isinstance(name, str) else name
    if mean is None or std is None:
        raise DataError("normalize", name, "is unknown", f"use one of {', '.join(sorted(_NAMED))}")
    return np.asarray(mean, np.float32), np.asarray(std, np.float32)


def as_image(image: Any) -> np.ndarray:
    """Return an RGB image as uint8 (H, W, 3), from such an array or a file's path.

    Raises:
        DataError: It is neither, cannot be read, or Pillow is missing.
    """
    if isinstance(image, str | os.PathLike):
        try:
            from PIL import Image, ImageOps
        except ModuleNotFoundError as error:
            raise DataError(
                "image", str(image), "reading files needs Pillow", "pip install pillow"
            ) from error
        try:
            with Image.open(image) as file:
                return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(
                "image", str(image), "cannot be read as an image", "check the file"
            ) from error
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise DataError(
            "image",
            f"{array.dtype} {array.shape}",
            "must be an RGB image, uint8 of shape (H, W, 3)",
            "convert it, or give the path of a file",
        )
    return array


def resize(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize feature maps bilinearly, like torch with ``align_corners=False``.

    Args:
        values: (N, C, H, W).
        size: Rows and columns of the result.
    """
    for axis, length in zip((2, 3), size, strict=True):
        before = values.shape[axis]
        if before == length:
            continue
        at = np.maximum((np.arange(length) + 0.5) * (before / length) - 0.5, 0)
        low = np.minimum(at.astype(np.int64), before - 1)
        share = (at - low).astype(values.dtype)
        shape = [1] * values.ndim
        shape[axis] = -1
        share = share.reshape(shape)
        high = np.minimum(low + 1, before - 1)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


def shrink(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize an image bilinearly with antialiasing.

    Args:
        image: uint8 (H, W, 3).
        size: Rows and columns of the result.

    Returns:
        uint8 of that size.
    """
    if image.shape[:2] == tuple(size):
        return image
    values: np.ndarray = image.astype(np.float32)
    for axis, length in enumerate(size):
        matrix = _triangles(values.shape[axis], length)
        values = np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)
        # Rounded to integers between the passes, like a uint8 image.
        values = np.clip(np.rint(values), 0, 255)
    return values.astype(np.uint8)


def _triangles(before: int, after: int) -> np.ndarray:
    """Return the weights (after, before) of a triangle filter as wide as a new pixel."""
    scale = max(before / after, 1.0)
    centre = (np.arange(after)[:, None] + 0.5) * (before / after)
    distance = np.abs(np.arange(before)[None] + 0.5 - centre) / scale
    weights = np.maximum(0.0, 1.0 - distance)
    result: np.ndarray = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return result
