"""Signs packed to bits.

Bit order: element i of the flattened tensor is bit ``i % 8`` (least significant first) of byte
``i // 8``; a set bit means +1, the unused bits of the last byte are 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from binarize.errors import BinarizeError

__all__ = ["pack_signs", "unpack_signs"]


def pack_signs(signs: Tensor) -> Tensor:
    """Pack the signs of a tensor, one bit each.

    Args:
        signs: Tensor of any shape; negative values become 0, all others (also 0, NaN) 1.

    Returns:
        uint8 tensor of ``ceil(numel / 8)`` bytes on the same device.
    """
    bits = (~(signs.detach().flatten() < 0)).to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -bits.numel() % 8)).view(-1, 8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    return (bits * weights).sum(1, dtype=torch.uint8)


def unpack_signs(
    packed: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Undo :func:`pack_signs`.

    Args:
        packed: uint8 tensor of ``ceil(prod(shape) / 8)`` bytes.
        shape: Shape of the tensor that was packed.
        dtype: Floating-point type of the result.

    Returns:
        Tensor of ``shape`` with the values -1 and +1.

    Raises:
        BinarizeError: The number of bytes does not fit the shape.
    """
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or packed.numel() != (count + 7) // 8:
        raise BinarizeError(
            "packed",
            f"{packed.numel()} x {packed.dtype}",
            f"{count} signs need {(count + 7) // 8} bytes of uint8",
            "give the bytes that pack_signs returned for this shape",
        )
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.view(-1, 1) >> shifts) & 1
    return (bits.flatten()[:count].to(dtype) * 2 - 1).view(tuple(shape))
