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

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from binarize.ops.convolution import (
    Geometry,
    convolution_gradients,
    convolve,
    sum_factors,
    sums_exactly,
)
from binarize.ops.sign import clip_gradient_

__all__ = ["adaptive_convolution", "adaptive_sign"]


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


class _AdaptiveConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        threshold: Tensor,
        exponent: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        geometry: Geometry,
        positions: list[int],
        over: list[int],
        whole: bool,
    ) -> Tensor:
        shifted, deviation, buffer = _binarize(x, threshold, exponent, over)
        scale = _scale(x, deviation, exponent.detach())
        factors = None
        own_scale = weight_scale
        if whole and sums_exactly(x, weight):
            factors = sum_factors(scale, weight_scale, geometry)
            scale = weight_scale = scale.new_ones(())
        binary = torch.copysign(scale, shifted, out=buffer)
        binary_weight = _binary_weight(weight, weight_scale, x)
        # The float layer keeps a copy in half precision under autocast, too.
        kept = None if binary_weight.dtype == weight.dtype else binary_weight
        ctx.save_for_backward(x, threshold, exponent, deviation, weight, own_scale, kept)
        ctx.dims = positions, over
        ctx.geometry = geometry
        y = convolve(binary, binary_weight, geometry)
        return y if factors is None else y.mul_(factors)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *saved, weight, weight_scale, binary_weight = ctx.saved_tensors
        x = saved[0]
        if binary_weight is None:
            binary_weight = _binary_weight(weight, weight_scale, weight)
        binary, scale = _binarize_again(*saved)
        wanted = any(ctx.needs_input_grad[:3]), ctx.needs_input_grad[3]
        grad_binary, grad_weight = convolution_gradients(
            grad, binary, binary_weight, ctx.geometry, wanted
        )
        grads: tuple[Tensor | None, ...] = (None, None, None)
        if grad_binary is not None:
            grads = _gradients(grad_binary.to(x.dtype), binary, scale, (*saved,), *ctx.dims)
        if grad_weight is not None:
            grad_weight = clip_gradient_(grad_weight.to(weight.dtype), weight)
        return (*grads, grad_weight, *(None,) * 5)


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
    whole: bool,
) -> Tensor:
    """Convolve the scaled signs of a map with scaled signs of a weight.

    ``convolution(adaptive_sign(x), weight_scale * sign(weight))``, where the weight's gradient is
    the straight-through estimator's: 1 where ``|weight| <= 1``, else 0, times that of the signs.

    Args:
        x: Floating-point map (N, C_in, *spatial); for a linear map (N, *positions, C_in).
        threshold: As in :func:`adaptive_sign`.
        exponent: As in :func:`adaptive_sign`.
        weight: Latent weight, as torch's layer of that geometry has it.
        weight_scale: Positive and detached, of the size of ``weight`` in dimension 0; broadcasts
            to it.
        geometry: How the weight is laid over the map.
        positions: As in :func:`adaptive_sign`.
        over: As in :func:`adaptive_sign`.
        whole: Whether the map's scale is one per sample and the weight's one per output channel:
            then the signs are summed alone, see :mod:`binarize.ops.convolution`.

    Returns:
        The sums.
    """
    y: Tensor = _AdaptiveConvolution.apply(
        x, threshold, exponent, weight, weight_scale, geometry, positions, over, whole
    )
    return y
