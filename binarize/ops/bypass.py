"""The channel-adaptive full-precision bypass (CFB) and its resampling.

Shapes: feature maps are (N, C, *spatial), any number of spatial dimensions; ``dim`` is that of C.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.errors import BinarizeError

__all__ = ["GROUPINGS", "channel_adaptive_bypass", "repeat_border", "resample_bypass"]

GROUPINGS = ("contiguous", "interleaved")

# Group sizes up to which channels are added one by one.
_FEW = 8

_AVERAGE_POOL: dict[int, Callable[..., Tensor]] = {
    1: F.avg_pool1d,
    2: F.avg_pool2d,
    3: F.avg_pool3d,
}


class _GroupMean(torch.autograd.Function):
    """Means over blocks of neighbouring channels, the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        ctx.size = size
        total = x[..., ::size] + x[..., 1::size]
        for i in range(2, size):
            total += x[..., i::size]
        return total.div_(size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return (grad / ctx.size).repeat_interleave(ctx.size, -1), None


def _group_mean(x: Tensor, groups: int, dim: int) -> Tensor:
    """Means over blocks of neighbouring channels.

    In the channels-last layout, torch's mean over a few channels is slow, and its gradient would
    lose the layout.
    """
    size = x.shape[dim] // groups
    if x.stride(dim) != 1 or not 2 <= size <= _FEW:
        return x.unflatten(dim, (groups, size)).mean(dim + 1)
    means: Tensor = _GroupMean.apply(x.movedim(dim, -1), size)
    return means.movedim(-1, dim)


def _fuse_down(x: Tensor, channels: int, grouping: str, dim: int) -> Tensor:
    in_channels = x.shape[dim]
    size = in_channels // channels
    if channels == 1:
        return x.mean(dim, keepdim=True)
    if grouping == "contiguous" and in_channels == size * channels:
        return _group_mean(x, channels, dim)
    head = x.narrow(dim, 0, size * (channels - 1))
    tail = x.narrow(dim, size * (channels - 1), in_channels - size * (channels - 1))
    if grouping == "contiguous":
        groups = _group_mean(head, channels - 1, dim)
    else:
        groups = head.unflatten(dim, (size, channels - 1)).mean(dim)
    return torch.cat([groups, tail.mean(dim, keepdim=True)], dim)


def channel_adaptive_bypass(
    x: Tensor, out_channels: int, *, grouping: str = "contiguous", dim: int = 1
) -> Tensor:
    """Convert a full-precision feature map from C_in to ``out_channels`` channels, parameter-free.

    BiDense Eqs. 12-13. Fusion-up: ``out_channels // C_in`` copies of all channels, tiled.
    Fusion-down gives the remaining ``m = out_channels mod C_in`` channels: each is the mean of
    a group of ``K = C_in // m`` input channels, and the last group takes all that are left.

    Args:
        x: Feature map (N, C_in, *spatial); other layouts by ``dim``.
        out_channels: Number of output channels, at least 1.
        grouping: ``"contiguous"`` groups neighbouring channels, like the paper's pooling.
            ``"interleaved"`` is the released 2-D layer: group j of the first m - 1 holds the
            channels j, j + (m - 1), j + 2(m - 1), ... of the first K(m - 1).
        dim: The channel dimension, non-negative.

    Returns:
        Feature map with ``out_channels`` channels; ``x`` itself if C_in = ``out_channels``.

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
            "out_channels",
            out_channels,
            "a feature map needs at least one channel",
            "give 1 or more",
        )
    if in_channels < 1:
        raise BinarizeError(
            "x",
            tuple(x.shape),
            f"dimension {dim} has no channels",
            "give a feature map with channels",
        )
    copies, rest = divmod(out_channels, in_channels)
    if copies == 1 and rest == 0:
        return x
    parts = [x] * copies
    if rest:
        parts.append(_fuse_down(x, rest, grouping, dim))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def resample_bypass(x: Tensor, stride: Sequence[int], surplus: Sequence[int]) -> Tensor:
    """Resample a bypassed feature map to the spatial size of a convolution's output.

    A convolution of stride s, effective kernel r = dilation * (kernel - 1) + 1 and total padding p
    makes ``(H + surplus) // s`` outputs of H inputs, with ``surplus = p - r + s``. Here they are
    means over windows of ``s`` pixels. If an odd size leaves a partial window at the end,
    the last pixel is repeated to fill it; if an unpadded convolution makes fewer outputs, both
    sides are cropped; if it makes more, both borders are repeated.

    Args:
        x: Feature map (N, C, *spatial).
        stride: Stride of the convolution, per spatial dimension, in pixels.
        surplus: As above, per spatial dimension, in pixels.

    Returns:
        Feature map (N, C, *spatial of the convolution's output).

    Nothing here depends on the size's value, so that networks export with dynamic sizes (unlike
    pooling with ``ceil_mode``). With a stride, torch 2.8 to 2.11 require sizes declared even
    or odd (``2 * Dim(...)``), as their own pooling does.
    """
    for dim, (s, c) in enumerate(zip(stride, surplus, strict=True), start=2):
        if c < 0:
            x = x.narrow(dim, -c // 2, x.shape[dim] + c)
        elif c > 0:
            before = c // 2 if c >= s else 0
            x = repeat_border(x, dim, before, c - before)
    if all(s == 1 for s in stride):
        return x
    window = tuple(stride)
    if len(window) == 3 and x.dtype in (torch.float16, torch.bfloat16):
        # CPUs have no 3-D pooling in half precision.
        return F.avg_pool3d(x.float(), window, window).to(x.dtype)
    return _AVERAGE_POOL[len(window)](x, window, window)


def repeat_border(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    """Repeat the first and the last slice of one dimension.

    Args:
        x: Tensor with at least one slice.
        dim: The dimension.
        before: How often to prepend the first slice.
        after: How often to append the last slice.

    Unlike torch's replication padding, this compiles in any memory format and in half precision.
    """
    length = x.shape[dim]
    sizes = [-1] * x.dim()
    parts = []
    for start, count in ((0, before), (length - 1, after)):
        sizes[dim] = count
        parts.append(x.narrow(dim, start, 1).expand(sizes))
    return torch.cat([parts[0], x, parts[1]], dim)
