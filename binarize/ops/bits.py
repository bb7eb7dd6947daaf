"""Packing of signs into bits.

Bit order: element i of the flattened tensor is bit ``i % 8`` (least significant first) of byte
``i // 8``; a set bit means +1, the unused bits of the last byte are 0.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from binarize.errors import BinarizeError

__all__ = ["pack_bits", "pack_signs", "unpack_bits", "unpack_signs"]

# Multiplied with eight bytes of 0 or 1 as one number, it gathers them in the highest byte.
_GATHER = 0x0102040810204080


def pack_signs(signs: Tensor) -> Tensor:
    """Pack the signs of a tensor, one bit each.

    Args:
        signs: Tensor of any shape; negative values become 0, all others (also 0, NaN) 1.

    Returns:
        uint8 tensor of ``ceil(numel / 8)`` bytes on the same device.
    """
    return pack_bits(~(signs.detach() < 0))


def pack_bits(bits: Tensor) -> Tensor:
    """Pack the elements of a bool tensor, one bit each.

    Args:
        bits: Bool tensor of any shape.

    Returns:
        uint8 tensor of ``ceil(numel / 8)`` bytes on the same device.
    """
    flat = bits.reshape(-1)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    if sys.byteorder == "big":
        flat = flat.flip(1)
    # Rows in separate memory: a view as 8-byte words requires alignment.
    rows = flat.to(torch.uint8, copy=True).view(torch.int64).squeeze(1)
    return (((rows * _GATHER) >> 56) & 255).to(torch.uint8)


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
    return (unpack_bits(packed, shape).to(dtype) * 2 - 1).view(tuple(shape))


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Undo :func:`pack_bits`.

    Args:
        packed: uint8 tensor of ``ceil(prod(shape) / 8)`` bytes.
        shape: Shape of the tensor that was packed.

    Returns:
        Bool tensor of ``shape``.

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
    return bits.bool().flatten()[:count].view(tuple(shape))
