"""The channel-adaptive full-precision bypass (CFB) and its resampling.

Shapes: maps are (N, C, *spatial) with any number of spatial dimensions; ``dim`` moves the channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.errors import BinarizeError

__all__ = ["GROUPINGS", "channel_adaptive_bypass", "resample_bypass"]

GROUPINGS = ("contiguous", "interleaved")

_ADAPTIVE_POOL = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def _fuse_down(x: Tensor, channels: int, grouping: str, dim: int) -> Tensor:
    in_channels = x.shape[dim]
    size = in_channels // channels
    if channels == 1:
        return x.mean(dim, keepdim=True)
    if grouping == "contiguous" and in_channels == size * channels:
        return x.unflatten(dim, (channels, size)).mean(dim + 1)
    head = x.narrow(dim, 0, size * (channels - 1))
    tail = x.narrow(dim, size * (channels - 1), in_channels - size * (channels - 1))
    if grouping == "contiguous":
        groups = head.unflatten(dim, (channels - 1, size)).mean(dim + 1)
    else:
        groups = head.unflatten(dim, (size, channels - 1)).mean(dim)
    return torch.cat([groups, tail.mean(dim, keepdim=True)], dim)


def channel_adaptive_bypass(
    x: Tensor, out_channels: int, *, grouping: str = "contiguous", dim: int = 1
) -> Tensor:
    """Carry a full-precision map from C_in to ``out_channels`` channels without parameters.

    BiDense Eqs. 12-13. Fusion-up: ``out_channels // C_in`` copies of all channels, tiled.
    Fusion-down gives the ``m = out_channels mod C_in`` channels that are left: each is the mean of
    a group of ``K = C_in // m`` input channels, and the last group takes all that remains.

    Args:
        x: Map (N, C_in, *spatial); other layouts by ``dim``.
        out_channels: Number of channels wanted, at least 1.
        grouping: ``"contiguous"`` groups neighbouring channels, as the paper's pooling does.
            ``"interleaved"`` is the released 2-D layer: group j of the first m - 1 holds the
            channels j, j + (m - 1), j + 2(m - 1), ... of the first K(m - 1).
        dim: The channel dimension, not negative.

    Returns:
        Map with ``out_channels`` channels. With C_in = ``out_channels`` it is ``x`` itself.

    Raises:
        BinarizeError: ``grouping`` is unknown, or ``out_channels`` or C_in is below 1.

    Deviation: m = 1 works with both groupings (the released layer divides by zero there).
    """
    if grouping not in GROUPINGS:
        raise BinarizeError(
            "grouping", grouping, "no such channel grouping", f"use one of {', '.join(GROUPINGS)}"
        )
    in_channels = x.shape[dim]
    if out_channels < 1:
        raise BinarizeError(
            "out_channels", out_channels, "a map needs at least one channel", "give 1 or more"
        )
    if in_channels < 1:
        raise BinarizeError(
            "x", tuple(x.shape), f"dimension {dim} holds no channel", "give a map with channels"
        )
    copies, rest = divmod(out_channels, in_channels)
    if copies == 1 and rest == 0:
        return x
    parts = [x] * copies
    if rest:
        parts.append(_fuse_down(x, rest, grouping, dim))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def resample_bypass(x: Tensor, size: Sequence[int], *, mode: str) -> Tensor:
    """Bring the spatial size of a bypassed map to that of the convolution's output.

    Args:
        x: Map (N, C, *spatial).
        size: Wanted spatial size, in pixels.
        mode: ``"pool"`` for strided convolutions: average pooling to ``size`` (windows may
            overlap by a pixel where an odd size does not divide). ``"crop"`` for unpadded ones:
            the middle of the map. ``"nearest"`` for transposed ones.

    Returns:
        Map (N, C, *size).
    """
    size = list(size)
    if list(x.shape[2:]) == size:
        return x
    if mode == "nearest":
        return F.interpolate(x, size=size, mode="nearest")
    if mode == "crop" and all(have >= want for have, want in zip(x.shape[2:], size, strict=True)):
        for dim, want in enumerate(size, start=2):
            x = x.narrow(dim, (x.shape[dim] - want) // 2, want)
        return x
    return _ADAPTIVE_POOL[len(size)](x, size)
