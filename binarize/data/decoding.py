"""Decode image files to what viewers show: whole, upright, first frame, eight bits of RGB.

One way for training, evaluation and prediction, so that a network meets what it was trained on.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from binarize.errors import DataError

__all__ = ["decode", "is_image", "jpeg_runs_short", "rgb"]

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image with an EXIF orientation upright; 1 is upright already."""

_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")

# Bytes after the end of compressed data: nothing reads them, unless data are missing.
_FILLER = bytes((37 * i + 11) % 251 for i in range(96))
_END_OF_DATA = re.compile(rb"\xff+[^\x00\xff]", re.DOTALL)


def decode(path: Path) -> Image.Image:
    """Read an image file whole and turn it upright; the pixels keep their type.

    Raises:
        DataError: The file is missing or unreadable, is no image, or is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(
            "file", str(path), "no such file", "complete the data set, or check its folder"
        ) from error
    except OSError as error:
        raise DataError(
            "file", str(path), f"cannot be read ({error.strerror})", "check its permissions"
        ) from error
    try:
        image = _decoded(data)
        damaged = image.format == "JPEG" and jpeg_runs_short(data, image)
    except Exception as error:  # Pillow raises many kinds on damaged files
        raise DataError(
            "file", str(path), "cannot be read as an image", "replace the file, it may be cut off"
        ) from error
    if damaged:
        raise DataError(
            "file",
            str(path),
            "its JPEG data end before the image does: a part of it would be grey",
            "replace the file, it is damaged",
        )
    return _upright(image)


def is_image(path: Path) -> bool:
    """Whether a file begins like an image, whatever its name ends in."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path):
                return True
    except Exception:
        return False


def rgb(image: Image.Image, path: Path) -> np.ndarray:
    """Pixels as viewers show them, uint8 (H, W, 3).

    Sixteen bits of grey are scaled by their range, transparent pixels are laid on white.

    Args:
        image: What :func:`decode` returned.
        path: Its file, for messages.

    Raises:
        DataError: The pixels have no range by which to show them (floating point, 32 bits).
    """
    mode = image.mode
    if mode in _SIXTEEN_BITS or mode in ("I", "F"):
        values = np.asarray(image)
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if mode == "F" or low < 0 or high > 65535:
            raise DataError(
                "file",
                str(path),
                f"has {'floating-point' if mode == 'F' else '32-bit'} pixels, "
                f"here from {low:g} to {high:g}, and no range to scale them by",
                "save it with 8 or 16 bits",
            )
        grey = (values.astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        page = Image.new("RGBA", layer.size, "white")
        return np.array(Image.alpha_composite(page, layer).convert("RGB"))
    return np.array(image.convert("RGB"))


def jpeg_runs_short(data: bytes, image: Image.Image) -> bool:
    """Whether compressed data of a JPEG file end before all of its pixels are told.

    The decoder fills the rest with grey, without a word. Bytes added behind the data change
    nothing in a whole file; where data are missing, they are taken for them.

    Args:
        data: The file.
        image: What it decodes to.
    """
    longer = _with_filler(data)
    return longer is not None and _decoded(longer).tobytes() != image.tobytes()


def _decoded(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        # Of odd metadata and large images; neither changes what is read.
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        # After loading: Pillow turns TIFF files by itself, and then forgets their orientation.
        orientation: Any = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata do not hurt the pixels
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _with_filler(data: bytes) -> bytes | None:
    """A JPEG file with bytes added wherever compressed data end; None if that tells nothing.

    Raises:
        ValueError: What follows compressed data is neither the image's end nor more of it.
    """
    parts: list[bytes] = []
    position, done = 2, 0
    while data[position : position + 1] == b"\xff":
        kind = data[position + 1] if position + 1 < len(data) else 0
        if kind == 0xFF:  # padding
            position += 1
            continue
        if kind == 0xD9:
            return b"".join([*parts, data[done:]]) if parts else None
        # Arithmetic coding leaves trailing zeros out: there, missing data are no mistake.
        if 0xC9 <= kind <= 0xCF and kind != 0xCC:
            return None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if kind != 0xDA:
            continue
        for found in _END_OF_DATA.finditer(data, position):
            parts += [data[done : found.start()], _FILLER]
            done = position = found.start()
            if not 0xD0 <= found[0][-1] <= 0xD7:  # not a restart, which goes on with data
                break
        else:
            return None
    if parts:
        raise ValueError("no marker where one belongs")
    return None
