"""Numbers per channel, laid out so that passes over a map are quick.

Shapes: maps (N, C, *spatial).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["along_rows"]

# Bytes of a vector register. With fewer per pixel the loops of torch are scalar ones.
_VECTOR = 64


def along_rows(values: Tensor, x: Tensor) -> Tensor:
    """Repeat numbers per channel along the rows of a map whose channels lie last in memory.

    A pass over map and numbers then has inner loops of a whole row, where it had them of the few
    channels of one pixel.

    Args:
        values: Of size 1 along the rows, broadcasts to ``x``.
        x: Map, of any layout.

    Returns:
        The numbers, repeated if that makes passes quicker.
    """
    channels = x.shape[1] if x.dim() == 4 else 1
    if channels == 1 or values.dim() != 4 or values.shape[1] == 1:
        return values
    if x.stride(1) != 1 or channels * x.element_size() >= _VECTOR or torch.compiler.is_compiling():
        return values
    rows = values.expand(-1, -1, -1, x.shape[3])
    return rows.contiguous(memory_format=torch.channels_last)
