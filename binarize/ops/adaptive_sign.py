r"""The adaptive sign of BiDense, alone and with the convolution that reads it.

With a threshold :math:`\beta` and an exponent a,

.. math::
    x_s = x - \beta, \qquad \alpha = \exp\bigl(a (\overline{|x_s|} - 1)\bigr), \qquad
    B = \alpha \cdot \operatorname{sign}(x_s)

(Eqs. 4-10), with the surrogate gradient :math:`2 - 2|x_s|` where :math:`|x_s| < 1`, else 0. Both
functions keep nothing of the size of the map for their gradients but the map itself, which its
producer has made anyway: everything else is computed from it again, to the same last bit. A plain
composition would keep the shifted map and the binarized one too. They also write into the buffers
they have: on a CPU a new one of some megabytes costs several times the pass that fills it.

Shapes: maps have the samples at dimension 0; ``positions`` and ``over`` are dimensions of the map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from binarize.ops.sign import clip_gradient_

__all__ = ["Geometry", "adaptive_convolution", "adaptive_sign"]


class Geometry(NamedTuple):
    """What a convolution needs beside map and weight, as ``torch.convolution`` takes it."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    transposed: bool
    output_padding: Sequence[int]
    groups: int


def _sum(x: Tensor, dims: list[int]) -> Tensor:
    # An empty list means all dimensions to torch.
    return x.sum(dims, keepdim=True) if dims else x


def _shift(x: Tensor, threshold: Tensor) -> Tensor:
    # As "0 - threshold" is never -0.0, neither is x + shift: its sign bit says x >= threshold.
    return (0.0 - threshold).to(x.dtype)


def _scale(x: Tensor, deviation: Tensor, exponent: Tensor) -> Tensor:
    return torch.exp(exponent * (deviation - 1)).to(x.dtype)


def _binarize(
    x: Tensor, threshold: Tensor, exponent: Tensor, over: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The shifted map, whose sign bits count, the mean magnitude, a buffer of the map's size."""
    # torch.export runs this with gradients on, where writing into a buffer is refused.
    x, threshold, exponent = x.detach(), threshold.detach(), exponent.detach()
    shifted = x + _shift(x, threshold)
    magnitude = shifted.abs()
    count = 1
    for d in over:
        count *= x.shape[d]
    # A mean of half precision would lose what it is for.
    wide = torch.promote_types(x.dtype, torch.float32)
    deviation = magnitude.sum(over, keepdim=True, dtype=wide) if over else magnitude.to(wide)
    deviation = deviation / count
    return shifted, deviation, magnitude


def _binarize_again(
    x: Tensor, threshold: Tensor, exponent: Tensor, deviation: Tensor
) -> tuple[Tensor, Tensor]:
    """The scaled signs and their scale, for the backward pass."""
    scale = _scale(x, deviation, exponent)
    shifted = x + _shift(x, threshold)
    return torch.copysign(scale, shifted, out=shifted), scale


def _gradients(
    grad: Tensor,
    binary: Tensor,
    scale: Tensor,
    saved: tuple[Tensor, Tensor, Tensor, Tensor],
    positions: list[int],
    over: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the map, the threshold and the exponent, given that of the scaled signs.

    ``binary`` is used up: a buffer that is there costs less than a new one.
    """
    x, threshold, exponent, deviation = saved
    through_scale = _sum(torch.mul(grad, binary, out=binary), over) * (deviation - 1)
    size = torch.add(x, _shift(x, threshold), out=binary).abs_()
    slope = torch.addcmul(2 * scale, size, -2 * scale, out=size).clamp_(min=0)
    grad_x = slope.mul_(grad)
    grad_threshold = _sum(grad_x, positions).neg().to(threshold.dtype)
    return grad_x, grad_threshold, through_scale.sum_to_size(exponent.shape).to(exponent.dtype)


class _AdaptiveSign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        threshold: Tensor,
        exponent: Tensor,
        positions: list[int],
        over: list[int],
    ) -> Tensor:
        shifted, deviation, buffer = _binarize(x, threshold, exponent, over)
        ctx.save_for_backward(x, threshold, exponent, deviation)
        ctx.dims = positions, over
        return torch.copysign(_scale(x, deviation, exponent.detach()), shifted, out=buffer)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = ctx.saved_tensors
        binary, scale = _binarize_again(*saved)
        return (*_gradients(grad, binary, scale, saved, *ctx.dims), None, None)


def adaptive_sign(
    x: Tensor,
    threshold: Tensor,
    exponent: Tensor,
    *,
    positions: list[int],
    over: list[int],
) -> Tensor:
    """Scaled signs of a map.

    Args:
        x: Floating-point map.
        threshold: Broadcasts to ``x``, of size 1 along ``positions``.
        exponent: a, broadcasts to the means.
        positions: Dimensions that a threshold is shared along.
        over: Dimensions of the mean of ``|x - threshold|``, which is detached.

    Returns:
        Tensor of the shape and dtype of ``x``.
    """
    return _AdaptiveSign.apply(x, threshold, exponent, positions, over)


def _binary_weight(weight: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    signs = weight.detach() + 0.0
    binary = torch.copysign(scale, signs, out=signs)
    # What autocast would do, done here so that the copy can be kept.
    cast = x.dtype != weight.dtype and torch.is_autocast_enabled(x.device.type)
    return binary.to(x.dtype) if cast else binary


# Not torch.convolution, which autocast does not know.
_PLAIN: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def _convolve(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    rank = x.dim() - 2
    if transposed:
        rest = stride, padding, output_padding, groups, dilation
        return _TRANSPOSED[rank](x, weight, None, *rest)
    return _PLAIN[rank](x, weight, None, stride, padding, dilation, groups)


def _factors(
    x: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, geometry: Geometry
) -> Tensor | None:
    """What the sum over signs can be multiplied by afterwards, where the scales leave the sum.

    That sum is a whole number, so that it is exact in whatever order it is taken: a layer that
    counts bits has the same. In half precision it would not be, there the scales stay inside.
    """
    per_output = not geometry.transposed and weight_scale.numel() == weight.shape[0]
    per_sample = all(size == 1 for size in scale.shape[1:])
    wide = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
    if not (per_output and per_sample and wide):
        return None
    shape = [1, -1] + [1] * (x.dim() - 2)
    return scale * weight_scale.reshape(shape)


class _AdaptiveConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        threshold: Tensor,
        exponent: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        positions: list[int],
        over: list[int],
        *geometry: Any,
    ) -> Tensor:
        shifted, deviation, buffer = _binarize(x, threshold, exponent, over)
        scale = _scale(x, deviation, exponent.detach())
        factors = _factors(x, scale, weight, weight_scale, Geometry(*geometry))
        own_scale = weight_scale
        if factors is not None:
            scale = weight_scale = scale.new_ones(())
        binary = torch.copysign(scale, shifted, out=buffer)
        binary_weight = _binary_weight(weight, weight_scale, x)
        # The float layer keeps a copy in half precision under autocast, too.
        kept = None if binary_weight.dtype == weight.dtype else binary_weight
        ctx.save_for_backward(x, threshold, exponent, deviation, weight, own_scale, kept)
        ctx.dims = positions, over
        ctx.geometry = geometry
        y = _convolve(binary, binary_weight, *geometry)
        return y if factors is None else y.mul_(factors)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *saved, weight, weight_scale, binary_weight = ctx.saved_tensors
        x = saved[0]
        if binary_weight is None:
            binary_weight = _binary_weight(weight, weight_scale, weight)
        binary, scale = _binarize_again(*saved)
        # Autocast may have run the convolution in another type than that of map and weight.
        grad_binary, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad,
            binary.to(grad.dtype),
            binary_weight.to(grad.dtype),
            None,
            *ctx.geometry,
            [any(ctx.needs_input_grad[:3]), ctx.needs_input_grad[3], False],
        )
        grads: tuple[Tensor | None, ...] = (None, None, None)
        if grad_binary is not None:
            grads = _gradients(grad_binary.to(x.dtype), binary, scale, (*saved,), *ctx.dims)
        if grad_weight is not None:
            grad_weight = clip_gradient_(grad_weight.to(weight.dtype), weight)
        return (*grads, grad_weight, *(None,) * 9)


def adaptive_convolution(
    x: Tensor,
    threshold: Tensor,
    exponent: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    geometry: Geometry,
    *,
    positions: list[int],
    over: list[int],
) -> Tensor:
    """Convolve the scaled signs of a map with scaled signs of a weight.

    ``convolution(adaptive_sign(x), weight_scale * sign(weight))``, where the weight's gradient is
    the straight-through estimator's: 1 where ``|weight| <= 1``, else 0, times that of the signs.

    Args:
        x: Floating-point map (N, C_in, *spatial).
        threshold: As in :func:`adaptive_sign`.
        exponent: As in :func:`adaptive_sign`.
        weight: Latent weight, as ``torch.convolution`` takes it.
        weight_scale: Positive and detached; broadcasts to ``weight``.
        geometry: Of the convolution; the padding is by zeros.
        positions: As in :func:`adaptive_sign`.
        over: As in :func:`adaptive_sign`.

    Returns:
        Map (N, C_out, *spatial of the convolution's output).
    """
    return _AdaptiveConvolution.apply(
        x, threshold, exponent, weight, weight_scale, positions, over, *geometry
    )
