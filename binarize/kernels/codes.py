"""Codes of 8-bit layers: affine, 256 levels."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["LARGEST", "inverse_step", "plain_codes"]

LARGEST = 255


def inverse_step(scale: float) -> float:
    """Return the factor that turns values into codes.

    This is the reciprocal in single precision, as in torch's own fake quantization.
    """
    return float(1 / torch.tensor(scale, dtype=torch.float32))


def plain_codes(x: Tensor, scale: float, zero: int) -> Tensor:
    """Return codes (uint8), clip(round(x / scale) + zero, 0, 255), in plain torch."""
    return ((x.float() * inverse_step(scale)).round() + zero).clamp(0, LARGEST).to(torch.uint8)
