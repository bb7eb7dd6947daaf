"""Fold a binary layer's norm, scales and padding into the numbers that the kernel takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from binarize.nn.base import BinaryLayer

__all__ = [
    "folded_norm",
    "folded_padding",
    "kernel_padding_mode",
    "layer_padding",
    "obstacle_to_counting",
]


# With more, sums in floating point take no longer on AVX2 (docs/benchmarks.md).
MOST_COUNTS = 16


def obstacle_to_counting(layer: BinaryLayer) -> str | None:
    """Return why a packed layer does not count bits, or ``None`` if it does."""
    conv: Any = layer
    forms = conv.binarizer.threshold_forms()
    if not forms and layer.popcount_exact:
        return "its activations have a scale per channel"
    if not forms:
        return "the scale of its activations, one per channel, is inside the channel sum"
    if not conv.quantizer.has_planes:
        return "its weights are not known as sums of signs times factors"
    transposed = getattr(layer, "transposed", False)
    if transposed and layer.spec.transposed_scale != "output-channel":
        return "the scale of its weights, one per input channel, is inside the channel sum"
    if any(form.scale == "magnitude" for form in forms):
        return "the kernels do not support the scale of its activations"
    counts = len(forms) * layer.weight_bits
    if counts > MOST_COUNTS:
        return f"{counts} counts of bits would take longer than sums in floating point"
    if conv.norm.running_mean is None:
        return "its norm uses the statistics of the batch"
    extra = getattr(layer, "pre_padding", None)
    if extra is not None and conv.padding_mode != "zeros" and conv.padding != "valid":
        return "it pads twice, in different ways"
    resampled = layer.bypass is not None and (extra == "same" or transposed)
    if layer.inner is not None and resampled:
        return "an activation precedes its bypass, which is resampled"
    if all(form.more is not None for form in forms) and resampled:
        return "all bits of its activations have several thresholds, and its bypass is resampled"
    return None


def folded_norm(norm: Any) -> tuple[Tensor, Tensor]:
    """Return a BatchNorm in eval mode as gain and offset per channel, both (C) in float64."""
    gain = torch.rsqrt(norm.running_var.detach().double() + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.detach().double()
    offset = -norm.running_mean.detach().double() * gain
    if norm.bias is not None:
        offset = offset + norm.bias.detach().double()
    return gain, offset


def kernel_padding_mode(layer: Any) -> str:
    """Return how a layer's combined padding fills the border; see :func:`layer_padding`."""
    # Then all padding is that in front of the layer, which is zeros.
    own = getattr(layer, "padding", None) != "valid"
    return str(getattr(layer, "padding_mode", "zeros")) if own else "zeros"


def layer_padding(layer: Any, spatial: int) -> list[int]:
    """Combine all paddings of a layer except SAME, which depends on the size.

    Args:
        layer: A convolution, transposed convolution or linear layer, binary or 8-bit.
        spatial: Number of spatial dimensions.

    Returns:
        Padding (before, after) per dimension, first dimension first.
    """
    if isinstance(layer, nn.Linear):
        return [0] * (2 * spatial)
    if layer.padding == "same":
        totals = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        single = (0,) * spatial if layer.padding == "valid" else layer.padding
        pairs = [(p, p) for p in single]
    extra = getattr(layer, "pre_padding", None)
    pads = [] if extra is None or isinstance(extra, str) else list(extra)
    padding: list[int] = []
    for d, (before, after) in enumerate(pairs):
        # Pairs are in the order of torch.nn.functional.pad: last dimension first.
        own = (*pads[2 * (spatial - 1 - d) :][:2], 0, 0)
        padding += [before + int(own[0]), after + int(own[1])]
    return padding


def folded_padding(layer: Any, spatial: int) -> tuple[list[int], list[int]]:
    """Combine all paddings of a layer, and find where the windows of its bypass start.

    SAME padding depends on the size and is omitted.

    Args:
        layer: The layer.
        spatial: Number of spatial dimensions.

    Returns:
        Padding (before, after) per dimension, first dimension first; and, per dimension, how many
        pixels the bypass's first window starts before the first pixel of the feature map (after it
        if negative), see :func:`binarize.ops.resample_bypass`.
    """
    padding = layer_padding(layer, spatial)
    if isinstance(layer, nn.Linear):
        return padding, [0] * spatial
    offsets = [0] * spatial
    if layer.bypass is not None and not layer.transposed:
        for d, (s, c) in enumerate(zip(layer.stride, layer.bypass.surplus, strict=True)):
            if c < 0:
                offsets[d] = -(-c // 2)
            else:
                offsets[d] = c // 2 if c >= s else 0
    return padding, offsets
