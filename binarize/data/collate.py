"""Batches of samples that differ in size.

Shape legend: H, W rows and columns of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from binarize.data.dense import IGNORE
from binarize.errors import DataError

__all__ = ["PadCollate", "pad_to_multiple"]


class PadCollate:
    """A ``collate_fn`` that pads samples to the largest one of their batch, to the right and below.

    Images get 0, the mean colour once normalised, masks the ignored label and depth maps 0, which
    is unknown: neither losses nor metrics count what was added.

    Args:
        multiple: Rows and columns become multiples of it, as encoders with as many strides need.

    Raises:
        DataError: ``multiple`` is not positive.
    """

    def __init__(self, multiple: int = 32) -> None:
        if multiple < 1:
            raise DataError("multiple", multiple, "must be positive", "use e.g. 32")
        self.multiple = multiple

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Return a batch of samples: dicts with "image", or tuples (image, target)."""
        images = [sample["image" if isinstance(sample, Mapping) else 0] for sample in samples]
        rows, columns = (
            _up(max(image.shape[axis] for image in images), self.multiple) for axis in (-2, -1)
        )
        return default_collate([_padded(sample, rows, columns) for sample in samples])


def pad_to_multiple(image: Tensor, multiple: int = 32) -> Tensor:
    """Return (..., H, W) padded with 0 to the right and below, to multiples of ``multiple``."""
    rows, columns = (_up(image.shape[axis], multiple) for axis in (-2, -1))
    return _pad(image, rows, columns, 0.0)


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _pad(values: Tensor, rows: int, columns: int, fill: float) -> Tensor:
    beside, below = columns - values.shape[-1], rows - values.shape[-2]
    return F.pad(values, (0, beside, 0, below), value=fill)


def _padded(sample: Any, rows: int, columns: int) -> Any:
    named = isinstance(sample, Mapping)
    padded = {}
    for key, value in sample.items() if named else enumerate(sample):
        if isinstance(value, Tensor) and value.ndim > 1:
            # Masks hold integers; images and depth are floating point.
            fill = 0.0 if value.is_floating_point() else IGNORE
            value = _pad(value, rows, columns, fill)
        padded[key] = value
    return padded if named else tuple(padded.values())
