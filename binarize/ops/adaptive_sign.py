r"""BiDense's adaptive sign, alone and fused with the following convolution.

With a threshold :math:`\beta` and an exponent a,

.. math::
    x_s = x - \beta, \qquad \alpha = \exp\bigl(a (\overline{|x_s|} - 1)\bigr), \qquad
    B = \alpha \cdot \operatorname{sign}(x_s)

(Eqs. 4-10), with the surrogate gradient :math:`2 - 2|x_s|` where :math:`|x_s| < 1`, else 0. Both
functions save only the input for their gradients, which exists anyway, and recompute everything
else from it, bit for bit. A plain composition would also save the shifted and the binarized
activations. They also reuse buffers: on a CPU, allocating some megabytes costs several times the
pass that fills them.

Shapes: ``x`` has the samples at dimension 0; ``positions`` and ``over`` are dimensions of ``x``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
from binarize.ops.rows import along_rows
from binarize.ops.sign import clip_gradient_, polynomial_gradient_

__all__ = ["adaptive_convolution", "adaptive_sign"]


def _sum(x: Tensor, dims: list[int]) -> Tensor:
    # An empty list means all dimensions to torch.
    return x.sum(dims, keepdim=True) if dims else x


class _Terms(NamedTuple):
    """The input, and the means from which everything else can be recomputed."""

    x: Tensor
    shift: Tensor
    excess: Tensor
    scale: Tensor

    def shifted(self, out: Tensor | None = None) -> Tensor:
        """Return the input minus its thresholds."""
        return torch.add(self.x, along_rows(self.shift, self.x), out=_buffer(out))


def _binarize(
    x: Tensor, threshold: Tensor, exponent: Tensor, over: list[int]
) -> tuple[_Terms, Tensor, Tensor]:
    """Return the terms, the shifted input, whose sign bits count, and a buffer of its size."""
    # torch.export runs this with gradients enabled, where writing into a buffer is not allowed.
    x, threshold, exponent = x.detach(), threshold.detach(), exponent.detach()
    # As "0 - threshold" is never -0.0, neither is x + shift: its sign bit means x >= threshold.
    shift = (0.0 - threshold).to(x.dtype)
    shifted = x + along_rows(shift, x)
    magnitude = shifted.abs()
    # A mean in half precision would be too coarse.
    wide = torch.promote_types(x.dtype, torch.float32)
    mean = magnitude.mean(over, keepdim=True, dtype=wide) if over else magnitude.to(wide)
    excess = mean - 1
    return _Terms(x, shift, excess, torch.exp(exponent * excess).to(x.dtype)), shifted, magnitude


def _gradients(
    grad: Tensor,
    binary: Tensor,
    terms: _Terms,
    threshold: Tensor,
    exponent: Tensor,
    positions: list[int],
    over: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, threshold and exponent from that of the scaled signs.

    ``binary`` is overwritten: reusing a buffer is cheaper than allocating one.
    """
    through_scale = _sum(binary.mul_(grad), over) * terms.excess
    size = terms.shifted(out=binary).abs_()
    grad_x = polynomial_gradient_(size, grad, terms.scale)
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
        terms, shifted, spare = _binarize(x, threshold, exponent, over)
        _, shift, excess, scale = terms
        ctx.save_for_backward(x, shift, excess, scale, threshold, exponent)
        ctx.dims = positions, over
        return torch.copysign(terms.scale, shifted, out=_buffer(spare))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *saved, threshold, exponent = ctx.saved_tensors
        terms = _Terms(*saved)
        shifted = terms.shifted()
        binary = torch.copysign(terms.scale, shifted, out=_buffer(shifted))
        return (*_gradients(grad, binary, terms, threshold, exponent, *ctx.dims), None, None)


def adaptive_sign(
    x: Tensor,
    threshold: Tensor,
    exponent: Tensor,
    *,
    positions: list[int],
    over: list[int],
) -> Tensor:
    """Return the scaled signs of a feature map.

    Args:
        x: Floating-point feature map.
        threshold: Broadcasts to ``x``, of size 1 along ``positions``.
        exponent: a, broadcasts to the means.
        positions: Dimensions along which a threshold is shared.
        over: Dimensions of the mean of ``|x - threshold|``, which is detached.

    Returns:
        Tensor of the shape and dtype of ``x``.
    """
    return _AdaptiveSign.apply(x, threshold, exponent, positions, over)


def _binary_weight(weight: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    # No -0.0, which counts as +1; a number too small for half precision keeps its sign.
    signs = weight.detach() + 0.0
    if x.dtype != weight.dtype and torch.is_autocast_enabled(x.device.type):
        # Autocast's conversion, done here so that the copy can be saved.
        signs, scale = signs.to(x.dtype), scale.to(x.dtype)
    return torch.copysign(scale, signs, out=_buffer(signs))


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
        terms, shifted, spare = _binarize(x, threshold, exponent, over)
        factors, scale, own_scale = None, terms.scale, weight_scale
        if whole and sums_exactly(x, weight):
            factors = sum_factors(scale, weight_scale, geometry)
            scale = weight_scale = scale.new_ones(())
        binary = torch.copysign(scale, shifted, out=_buffer(spare))
        binary_weight = _binary_weight(weight, weight_scale, x)
        # A float layer also saves a half-precision copy under autocast.
        kept = None if binary_weight.dtype == weight.dtype else binary_weight
        _, shift, excess, own = terms
        saved = x, shift, excess, own, threshold, exponent
        ctx.save_for_backward(*saved, weight, own_scale, kept)
        ctx.dims = positions, over
        ctx.geometry = geometry
        y = convolve(binary, binary_weight, geometry)
        return y if factors is None else y.mul_(factors)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *saved, threshold, exponent, weight, weight_scale, binary_weight = ctx.saved_tensors
        terms = _Terms(*saved)
        if binary_weight is None:
            binary_weight = _binary_weight(weight, weight_scale, weight)
        shifted = terms.shifted()
        binary = torch.copysign(terms.scale, shifted, out=_buffer(shifted))
        wanted = any(ctx.needs_input_grad[:3]), ctx.needs_input_grad[3]
        grad_binary, grad_weight = convolution_gradients(
            grad, binary, binary_weight, ctx.geometry, wanted
        )
        grads: tuple[Tensor | None, ...] = (None, None, None)
        if grad_binary is not None:
            grad_binary = grad_binary.to(binary.dtype)
            grads = _gradients(grad_binary, binary, terms, threshold, exponent, *ctx.dims)
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
    """Convolve the scaled signs of a feature map with the scaled signs of a weight.

    ``convolution(adaptive_sign(x), weight_scale * sign(weight))``, where the weight's gradient is
    the straight-through estimator's: 1 where ``|weight| <= 1``, else 0, times that of the signs.

    Args:
        x: Floating-point feature map (N, C_in, *spatial); for a linear layer (N, *positions, C_in).
        threshold: As in :func:`adaptive_sign`.
        exponent: As in :func:`adaptive_sign`.
        weight: Latent weight, in the layout of torch's layer of that geometry.
        weight_scale: Positive and detached, of the size of ``weight`` in dimension 0; broadcasts
            to it.
        geometry: Geometry of the convolution.
        positions: As in :func:`adaptive_sign`.
        over: As in :func:`adaptive_sign`.
        whole: Whether activations have one scale per sample and weights one per output channel:
            then only signs are summed, see :mod:`binarize.ops.convolution`.

    Returns:
        The sums.
    """
    y: Tensor = _AdaptiveConvolution.apply(
        x, threshold, exponent, weight, weight_scale, geometry, positions, over, whole
    )
    return y


def _buffer(tensor: Tensor | None) -> Tensor | None:
    """Return the ``out`` argument for a torch function.

    Args:
        tensor: A tensor of the right shape and dtype whose values are no longer needed, or none.

    Returns:
        That tensor; None in compiled code, which manages its own buffers and in torch
        2.8 does not accept channels-last ones.
    """
    return None if torch.compiler.is_compiling() else tensor
