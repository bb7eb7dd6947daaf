"""Images with any number of bands, such as GeoTIFF files of satellites.

Shape legend: B bands, H, W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binarize.data.decoding import decode
from binarize.errors import DataError
from binarize.extras import naming_the_extra

__all__ = ["MOST_BANDS", "band_statistics", "preview", "read_bands"]

MOST_BANDS = 16
_TIFF = (".tif", ".tiff")
_NODATA = 42113
_SAMPLES = 64


def read_bands(path: Path, bands: int) -> Tensor:
    """Read an image with its values as they are.

    TIFF files may hold bands as samples, planes or pages of 8, 16 or 32 bits or floating-point
    numbers; other files have up to four channels of 8 bits.

    Args:
        path: The file.
        bands: Number of bands that it must have.

    Returns:
        float32 tensor (B, H, W), NaN where the file says that it has no data.

    Raises:
        DataError: The file is missing, damaged, or has another number of bands.
        BinarizeError: TIFF files need tifffile, which is not installed.
    """
    values = _tiff(path) if path.suffix.lower() in _TIFF else _channels(path)
    if len(values) != bands:
        raise DataError(
            "bands",
            len(values),
            f"{path} has another number of bands than {bands}",
            "give the number in all files (--in-channels), or replace the file",
        )
    return torch.from_numpy(np.ascontiguousarray(values))


def band_statistics(
    files: Sequence[Path], bands: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each band over 64 files spread over the list.

    A constant band gets the deviation 1.

    Raises:
        DataError: A file cannot be read.
    """
    count, total, squares = torch.zeros(3, bands, dtype=torch.float64)
    step = max(1, len(files) // _SAMPLES)
    for file in files[::step][:_SAMPLES]:
        values = read_bands(file, bands).double().flatten(1)
        known = values.isfinite()
        values = torch.where(known, values, 0)
        count += known.sum(1)
        total += values.sum(1)
        squares += values.square().sum(1)
    mean = total / count.clamp(min=1)
    deviation = (squares / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
    deviation = torch.where(deviation > 1e-6 * mean.abs().clamp(min=1e-6), deviation, 1)
    return tuple(mean.tolist()), tuple(deviation.tolist())


def preview(image: Tensor) -> Tensor:
    """Return the first three bands of a normalised image (B, H, W) as uint8 (3, H, W).

    Two standard deviations around the mean fill the range of display.
    """
    shown = image.detach().cpu().float()[..., :3, :, :]
    if shown.shape[-3] < 3:
        shown = shown[..., :1, :, :].expand(*shown.shape[:-3], 3, -1, -1)
    return shown.mul(64).add(128).nan_to_num(0).round().clamp(0, 255).to(torch.uint8)


def _channels(path: Path) -> np.ndarray:
    array = np.asarray(decode(path))
    return (array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)).astype(np.float32)


def _tiff(path: Path) -> np.ndarray:
    """Return the first image of a TIFF file, bands first; further pages of its shape are bands."""
    with naming_the_extra():
        import tifffile
    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            axes, values = series.axes, series.asarray()
            page: Any = file.pages[0]
            tag = page.tags.get(_NODATA)
    except FileNotFoundError as error:
        raise DataError(
            "file", str(path), "no such file", "complete the data set, or check its folder"
        ) from error
    except Exception as error:  # tifffile raises many types on damaged files
        raise DataError(
            "file", str(path), "cannot be read as a TIFF image", "replace the file"
        ) from error
    rest = [place for place, name in enumerate(axes) if name not in "YX"]
    if sum(values.shape[place] > 1 for place in rest) > 1:
        raise DataError("file", str(path), f"has several images ({axes})", "save one per file")
    order = [*rest, axes.index("Y"), axes.index("X")]
    values = values.transpose(order).reshape(-1, *(values.shape[i] for i in order[-2:]))
    values = values.astype(np.float32)
    if tag is not None:
        with suppress(ValueError):  # not a number: nothing is marked
            values[values == np.float32(str(tag.value).strip("\0 "))] = np.nan
    values[~np.isfinite(values)] = np.nan
    return values
