"""The binary layer in plain torch, the reference for every native kernel.

Shapes: feature maps are (N, C, *spatial), one to three spatial dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.kernels.call import UnitCall
from binarize.kernels.codes import plain_codes
from binarize.kernels.layout import Layout, unpack_weight
from binarize.ops.bypass import channel_adaptive_bypass
from binarize.ops.ties import below_ties

__all__ = ["convolve", "unit"]

_CONV: list[Any] = [F.conv1d, F.conv2d, F.conv3d]
_CONV_TRANSPOSE: list[Any] = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]


def unit(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """Run ``binarize::unit``; :mod:`binarize.kernels.ops` describes what it computes.

    Args:
        *arguments: The fields of a :class:`binarize.kernels.call.UnitCall`. A floating-point
            ``weight`` is taken as the signs themselves, in the shape of a convolution's.
        **named: More of them.

    Returns:
        The feature map and its means.
    """
    call = UnitCall(*arguments, **named)
    x = torch.cat([_upsample(s, u) for s, u in zip(call.sources, call.upsample, strict=True)], 1)
    positions = list(range(2, x.dim()))
    column = (1, -1, *(1,) * len(positions))
    level = call.threshold.view(1, -1)
    if call.mean_gain is not None:
        level = below_ties(call.mean_gain * _means(call.sources, call.means) + level)
    level = level.reshape(-1, x.shape[1], *(1,) * len(positions))
    signs = _signs(x, level, call.flip)
    window = call.kernel, call.stride, call.dilation, call.groups, call.transposed
    layout = Layout(x.shape[1], call.gain.shape[0], *window)
    filters = call.weight
    if not call.weight.is_floating_point():
        filters = unpack_weight(call.weight, layout, call.kernel, call.transposed)
    how = call.stride, call.padding, call.dilation, call.groups, call.padding_mode
    total = convolve(signs, filters, *how, call.transposed, call.output_padding)
    scale: Tensor = call.gain.view(column)
    if call.exponent is not None:
        deviation = (x - level).abs().mean([1, *positions], keepdim=True)
        scale = torch.exp(call.exponent * (deviation - 1)) * scale
    y = scale * total + call.offset.view(column)
    if call.bypass != "none":
        if call.transposed:
            x = F.interpolate(x, size=y.shape[2:], mode="nearest")
        else:
            x = _windows(x, call.stride, call.bypass_offset, y.shape[2:])
        y = y + channel_adaptive_bypass(x, y.shape[1], grouping=call.bypass)
    for residual in call.residuals:
        y = y + residual
    if call.act_shift is not None:
        y = y + call.act_shift.view(column)
    if call.act_slope is not None:
        y = torch.where(y > 0, y, y * call.act_slope.view(column))
    if call.act_out_shift is not None:
        y = y + call.act_out_shift.view(column)
    written = y if call.y_scale is None else plain_codes(y, call.y_scale, call.y_zero)
    # Not with `contiguous`, which leaves the strides of size-1 dimensions arbitrary.
    shape = (y.shape[0], *y.shape[2:], y.shape[1])
    result = written.new_empty(shape).movedim(-1, 1).copy_(written)
    return result, _mean(y) if call.want_means else y.new_empty(0)


def _means(sources: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
    """Return the means per sample and channel of all sources, computing those not given."""
    found = given or [x.new_empty(0) for x in sources]
    pairs = zip(sources, found, strict=True)
    return torch.cat([m if m.numel() else _mean(x) for x, m in pairs], 1)


def _mean(x: Tensor) -> Tensor:
    # In double precision, as in the training layers.
    return x.mean(list(range(2, x.dim())), dtype=torch.float64).to(x.dtype)


def _upsample(x: Tensor, factor: int) -> Tensor:
    for dim in range(2, x.dim()):
        x = x.repeat_interleave(factor, dim) if factor != 1 else x
    return x


def _signs(x: Tensor, level: Tensor, flip: Tensor | None) -> Tensor:
    # The comparison is negated, not reversed: NaN gives +1.
    bits = ~(x < level)
    if flip is not None:
        # Not by `where`, which ONNX Runtime lacks for truth values.
        flip = flip.view(1, -1, *(1,) * (x.dim() - 2))
        bits = (flip & ~(x > level)) | (~flip & bits)
    return bits.to(x.dtype) * 2 - 1


def convolve(
    signs: Tensor,
    filters: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    padding_mode: str,
    transposed: bool,
    output_padding: Sequence[int],
) -> Tensor:
    """Run the convolution of ``binarize::unit`` on any numbers.

    Args:
        signs: The feature map.
        filters: The weight, in the shape of a convolution's.
        stride: As for the operator, as are all that follow.
        padding: Before and after, per dimension.
        dilation: Per dimension.
        groups: Number of groups.
        padding_mode: As in :class:`torch.nn.Conv2d`.
        transposed: Whether it is a transposed convolution.
        output_padding: Of a transposed convolution, per dimension.
    """
    spatial = len(stride)
    if transposed:
        full = _CONV_TRANSPOSE[spatial - 1](signs, filters, None, stride, 0, 0, groups, dilation)
        crop = [
            (-before, extra - after)
            for before, after, extra in zip(
                padding[::2], padding[1::2], output_padding, strict=True
            )
        ]
        return F.pad(full, [c for pair in reversed(crop) for c in pair])
    pads = [p for d in reversed(range(spatial)) for p in padding[2 * d : 2 * d + 2]]
    if any(pads):
        signs = F.pad(signs, pads, "constant" if padding_mode == "zeros" else padding_mode)
    return _CONV[spatial - 1](signs, filters, None, stride, 0, dilation, groups)


def _windows(
    x: Tensor, stride: Sequence[int], offset: Sequence[int], size: Sequence[int]
) -> Tensor:
    """Return means over windows of ``stride`` positions from ``o * stride - offset``, clamped."""
    for dim, (s, before, length) in enumerate(zip(stride, offset, size, strict=True), start=2):
        if s == 1 and before == 0 and length == x.shape[dim]:
            continue
        at = torch.arange(length * s, device=x.device) - before
        x = x.index_select(dim, at.clamp(0, x.shape[dim] - 1))
        if s > 1:
            x = x.unflatten(dim, (length, s)).mean(dim + 1)
    return x
