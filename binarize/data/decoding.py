"""Decode image files as viewers show them: complete, upright, first frame, 8-bit RGB.

Training, evaluation and prediction share this code, so that a network sees what it was trained on.
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

__all__ = ["decode", "decode_bytes", "is_image", "jpeg_runs_short", "rgb", "upright"]

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition for each EXIF orientation; 1 is upright already."""

_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")

# Bytes after the end of compressed data: only read if data are missing.
_FILLER = bytes((37 * i + 11) % 251 for i in range(96))
_END_OF_DATA = re.compile(rb"\xff+[^\x00\xff]", re.DOTALL)


def decode(path: Path) -> Image.Image:
    """Read a complete image file and turn it upright; the pixels keep their type.

    Raises:
        DataError: The file is missing or unreadable, not an image, or damaged.
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
    return decode_bytes(data, path)


def decode_bytes(data: bytes, path: Path) -> Image.Image:
    """Decode the bytes of a complete image file; see :func:`decode`.

    Args:
        data: The bytes.
        path: Their file, for messages.

    Raises:
        DataError: They are not an image, or damaged.
    """
    try:
        image = _decoded(data)
        damaged = image.format == "JPEG" and jpeg_runs_short(data, image)
    except Exception as error:  # Pillow raises many types on damaged files
        raise DataError(
            "file", str(path), "cannot be read as an image", "replace the file; it may be truncated"
        ) from error
    if damaged:
        raise DataError(
            "file",
            str(path),
            "JPEG data are incomplete: part of the image would be grey",
            "replace the file; it is damaged",
        )
    return upright(image)


def is_image(path: Path) -> bool:
    """Return whether a file starts like an image, whatever its suffix."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path):
                return True
    except Exception:
        return False


def rgb(image: Image.Image, path: Path) -> np.ndarray:
    """Return pixels as viewers show them, uint8 (H, W, 3).

    16-bit grey is scaled by its range, transparent pixels are composited on white.

    Args:
        image: Result of :func:`decode`.
        path: Its file, for messages.

    Raises:
        DataError: The pixel type has no display range (floating point, 32 bits).
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
    """Return whether a JPEG file's compressed data end before its last pixel.

    The decoder silently fills the rest with grey. Bytes appended to the data change
    nothing in a complete file; where data are missing, the decoder reads them instead.

    Args:
        data: The file.
        image: The decoded image.
    """
    longer = _with_filler(data)
    return longer is not None and _decoded(longer).tobytes() != image.tobytes()


def _decoded(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        # About odd metadata and large images; neither affects the pixels.
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data))
        image.load()
    return image


def upright(image: Image.Image) -> Image.Image:
    """Return a loaded image turned as its EXIF orientation says."""
    try:
        # After loading: Pillow rotates TIFF files itself, and then drops their orientation.
        orientation: Any = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata do not affect the pixels
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _with_filler(data: bytes) -> bytes | None:
    """Return a JPEG file with bytes added wherever compressed data end; None if inconclusive.

    Raises:
        ValueError: Compressed data are followed by neither the end of the image nor more data.
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
        # Arithmetic coding omits trailing zeros: there, missing data are not an error.
        if 0xC9 <= kind <= 0xCF and kind != 0xCC:
            return None
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if kind != 0xDA:
            continue
        for found in _END_OF_DATA.finditer(data, position):
            parts += [data[done : found.start()], _FILLER]
            done = position = found.start()
            if not 0xD0 <= found[0][-1] <= 0xD7:  # not a restart, which is followed by data
                break
        else:
            return None
    if parts:
        raise ValueError("marker expected")
    return None
