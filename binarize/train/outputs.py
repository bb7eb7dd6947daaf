"""Extract the dense prediction from a network's output, at the target's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from binarize.errors import ModelError

__all__ = ["class_scores", "dense_output", "resize_to"]

_KEYS = ("out", "logits", "masks", "mask", "depth", "predicted_depth")


def dense_output(output: Any) -> Tensor:
    """Return the dense prediction (N, C, H, W) in a network's output.

    Args:
        output: The tensor itself, a list or tuple that starts with it (segmentation_models_pytorch
            with a classification head), or a mapping that holds it under one of ``out``,
            ``logits``, ``masks``, ``mask``, ``depth``, ``predicted_depth``, or as its first value
            (torchvision, transformers). A tensor (N, H, W) gets a channel dimension.

    Raises:
        ModelError: There is no such tensor.
    """
    found: Any = output
    if isinstance(found, Mapping):
        named = [found[key] for key in _KEYS if key in found]
        found = named[0] if named else next(iter(found.values()), None)
    elif isinstance(found, Sequence) and not isinstance(found, str):
        found = found[0] if found else None
    if isinstance(found, Tensor) and found.ndim == 3:
        found = found.unsqueeze(1)
    if not isinstance(found, Tensor) or found.ndim != 4:
        shown = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
        raise ModelError(
            "output",
            shown,
            "the network must return a tensor of shape (N, C, H, W)",
            "return it directly, first in a tuple, or under 'out' or 'logits'",
        )
    return found


def class_scores(output: Any) -> Tensor:
    """Return the logits (N, C) in a network's output.

    Args:
        output: The logits, a list or tuple that starts with them, or a mapping that holds them
            under ``logits`` or ``out``, or as its first value.

    Raises:
        ModelError: There is no such tensor.
    """
    found: Any = output
    if isinstance(found, Mapping):
        first = next(iter(found.values()), None)
        found = found.get("logits", found.get("out", first))
    elif isinstance(found, Sequence) and not isinstance(found, str):
        found = found[0] if found else None
    if not isinstance(found, Tensor) or found.ndim != 2:
        shown = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
        raise ModelError(
            "output",
            shown,
            "the network must return logits of shape (N, C)",
            "return them directly, first in a tuple, or under 'logits'",
        )
    return found


def resize_to(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, C, h, w) to ``size`` bilinearly if sizes differ, as float32 or better."""
    values = values.float() if values.element_size() < 4 else values
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)
