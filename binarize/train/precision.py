"""The widest floating point type of a device."""

from __future__ import annotations

import torch

__all__ = ["wide"]


def wide(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple GPUs, which support nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64
