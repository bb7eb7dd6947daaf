r"""Rounding to the codes of 8-bit numbers, alone and fused with the following convolution.

With a step s and the code z of zero, activations become

.. math::
    \hat x = s \, (\operatorname{clip}(\operatorname{round}(x / s) + z, 0, 255) - z)

with gradient 1 where they are not clipped, else 0, and weights
:math:`\hat w = s_o \operatorname{clip}(\operatorname{round}(w / s_o), -m, m)` with gradient 1. The
fused function saves only the layer's own input and weight, which exist anyway, and rounds them
again for the gradients. A plain composition would also save a mask and both rounded tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from binarize.ops.convolution import Geometry, convolution_gradients, convolve

__all__ = ["LEVELS", "round_activations", "round_weight", "rounded_convolution"]

LEVELS = 255
"""The largest code of an activation; codes start at 0."""


def _codes(x: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """Return the codes before they are clipped."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return (wide * (1 / step)).round_().add_(zero)


def _inside(codes: Tensor) -> Tensor:
    return (codes >= 0) & (codes <= LEVELS)


def _values(codes: Tensor, step: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what codes stand for; they are overwritten."""
    return codes.clamp_(0, LEVELS).sub_(zero).mul_(step).to(dtype)


class _Rounding(torch.autograd.Function):
    # torch.fake_quantize_per_tensor_affine does the same, but fails on tensors without values.
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, zero: Tensor) -> Tensor:
        codes = _codes(x, step, zero)
        ctx.save_for_backward(_inside(codes))
        return _values(codes, step, zero, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None


def round_activations(x: Tensor, step: Tensor, zero: Tensor) -> Tensor:
    """Round a tensor to 256 levels.

    Args:
        x: Floating-point tensor.
        step: s, 0-D.
        zero: z, 0-D.

    Returns:
        Tensor of the shape and dtype of ``x``.
    """
    rounded: Tensor = _Rounding.apply(x, step, zero)
    return rounded


def round_weight(weight: Tensor, step: Tensor, largest: int) -> Tensor:
    """Return the codes of a weight, in its shape and at least float32.

    Args:
        weight: The weight; its gradient is not followed.
        step: Positive; broadcasts to it.
        largest: m.
    """
    wide = weight.detach()
    wide = wide.to(torch.promote_types(wide.dtype, torch.float32))
    return (wide / step).round_().clamp_(-largest, largest)


class _RoundedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        zero: Tensor,
        weight: Tensor,
        weight_step: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        largest: int,
    ) -> Tensor:
        ctx.save_for_backward(x, step, zero, weight, weight_step)
        ctx.geometry, ctx.largest = geometry, largest
        values = _values(_codes(x.detach(), step, zero), step, zero, x.dtype)
        rounded = round_weight(weight, weight_step, largest).mul_(weight_step).to(weight.dtype)
        return convolve(values, rounded, geometry, None if bias is None else bias.detach())

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, step, zero, weight, weight_step = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
        codes = _codes(x, step, zero)
        inside = _inside(codes) if wanted[0] else None
        values = _values(codes, step, zero, x.dtype)
        rounded = round_weight(weight, weight_step, ctx.largest).mul_(weight_step)
        of_map, of_weight = convolution_gradients(grad, values, rounded, ctx.geometry, wanted)
        if of_map is not None and inside is not None:
            of_map = of_map.to(x.dtype).mul_(inside)
        of_bias = None
        if ctx.needs_input_grad[5]:
            rows = grad.movedim(1, -1) if ctx.geometry.stride else grad
            of_bias = rows.reshape(-1, rows.shape[-1]).sum(0)
        of_weight = None if of_weight is None else of_weight.to(weight.dtype)
        return of_map, None, None, of_weight, None, of_bias, None, None


def rounded_convolution(
    x: Tensor,
    step: Tensor,
    zero: Tensor,
    weight: Tensor,
    weight_step: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    largest: int,
) -> Tensor:
    """Convolve a rounded feature map with a rounded weight.

    Args:
        x: Floating-point feature map (N, C_in, *spatial); for a linear layer (N, *positions, C_in).
        step: As in :func:`round_activations`.
        zero: As in :func:`round_activations`.
        weight: Latent weight, in the layout of torch's layer of that geometry.
        weight_step: As in :func:`round_weight`.
        bias: Constants to add (C_out,), not rounded.
        geometry: Geometry of the convolution.
        largest: As in :func:`round_weight`.

    Returns:
        The result, as from the rounded tensors. Gradients are theirs, straight through the
        rounding.
    """
    y: Tensor = _RoundedConvolution.apply(
        x, step, zero, weight, weight_step, bias, geometry, largest
    )
    return y
