"""Per-channel values in a layout that makes element-wise operations fast.

Shapes: feature maps (N, C, *spatial).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["along_rows"]

# Bytes of a vector register. With fewer per pixel, torch's loops are scalar.
_VECTOR = 64


def along_rows(values: Tensor, x: Tensor) -> Tensor:
    """Repeat per-channel values along the rows of a channels-last feature map.

    An element-wise operation then loops over a whole row instead of the few channels of one pixel.

    Args:
        values: Values of size 1 along the rows; broadcast to ``x``.
        x: Feature map in any layout.

    Returns:
        The values, repeated if that is faster.
    """
    channels = x.shape[1] if x.dim() == 4 else 1
    if channels == 1 or values.dim() != 4 or values.shape[1] == 1:
        return values
    if x.stride(1) != 1 or channels * x.element_size() >= _VECTOR or torch.compiler.is_compiling():
        return values
    rows = values.expand(-1, -1, -1, x.shape[3])
    return rows.contiguous(memory_format=torch.channels_last)
