"""Sums over binary values: convolutions and linear layers whose scales are applied afterwards.

A sum of signs is an integer, exact in any order, and therefore equal to XNOR-popcount. If
activations have one magnitude per sample and weights one per output channel, both are moved out of
the sum, and only signs are summed. In half precision a long sum would be rounded anyway; there the
scaled values are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "Geometry",
    "binary_convolution",
    "convolution_gradients",
    "convolve",
    "sample_magnitude",
    "sum_factors",
    "sums_exactly",
]


class Geometry(NamedTuple):
    """Geometry of a convolution or linear layer.

    Attributes:
        stride: Per spatial dimension; empty for a linear layer, which has the channels last.
        padding: Zeros on both sides, per spatial dimension.
        dilation: Per spatial dimension.
        transposed: Whether it is a transposed convolution.
        output_padding: Per spatial dimension.
        groups: Number of channel groups.
        pads: Zero padding applied first, in the format of ``torch.nn.functional.pad``.
    """

    stride: Sequence[int] = ()
    padding: Sequence[int] = ()
    dilation: Sequence[int] = ()
    transposed: bool = False
    output_padding: Sequence[int] = ()
    groups: int = 1
    pads: Sequence[int] = ()


# Not torch.convolution, which autocast does not cover.
_PLAIN: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def _padded(pads: Sequence[int]) -> bool:
    # A graph for all sizes must not depend on whether this one needs padding.
    return bool(pads) and (torch.compiler.is_compiling() or any(pads))


def convolve(x: Tensor, weight: Tensor, geometry: Geometry, bias: Tensor | None = None) -> Tensor:
    """Apply the convolution or linear layer to arbitrary values.

    Args:
        x: Feature map (N, C_in, *spatial), or (N, *positions, C_in) for a linear layer.
        weight: In the layout of torch's layer of that geometry.
        geometry: The geometry.
        bias: Constants to add (C_out,).
    """
    stride, padding, dilation, transposed, output_padding, groups, pads = geometry
    if not stride:
        return F.linear(x, weight, bias)
    if _padded(pads):
        x = F.pad(x, list(pads))
    rank = len(stride)
    if transposed:
        rest = stride, padding, output_padding, groups, dilation
        return _TRANSPOSED[rank](x, weight, bias, *rest)
    return _PLAIN[rank](x, weight, bias, stride, padding, dilation, groups)


def convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of :func:`convolve`, in the dtype of ``grad``.

    Args:
        grad: Gradient of its result.
        x: Its input; autocast may have run it in another dtype.
        weight: Its weight.
        geometry: Its geometry.
        wanted: Whether the gradients of ``x`` and of ``weight`` are needed.
    """
    x, weight = x.to(grad.dtype), weight.to(grad.dtype)
    if not geometry.stride:
        grad_x = grad.matmul(weight) if wanted[0] else None
        rows, columns = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return grad_x, rows.t().matmul(columns) if wanted[1] else None
    *how, pads = geometry
    padded = _padded(pads)
    if padded:
        x = F.pad(x, list(pads))
    mask = [wanted[0], wanted[1], False]
    grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *how, mask)
    if padded and grad_x is not None:
        grad_x = F.pad(grad_x, [-p for p in pads])
    return grad_x, grad_weight


def sample_magnitude(binary: Tensor) -> Tensor:
    """Return the magnitude of activations that have one per sample: (N, 1, ...)."""
    return binary.detach()[(slice(None), *[slice(1)] * (binary.dim() - 1))].abs()


def sum_factors(magnitude: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Return the factors of sums of signs.

    Args:
        magnitude: Magnitude of the activations, (N, 1, ...).
        weight: Values of one magnitude per output channel, or these magnitudes themselves, which
            broadcast to them.
        geometry: Geometry of the convolution.

    Returns:
        Tensor that broadcasts to the sums.
    """
    weight = weight.detach()
    if geometry.transposed:
        # (in, out / groups, ...): each group's first input channel has all of its outputs.
        weight = weight.unflatten(0, (geometry.groups, -1))[:, 0].flatten(0, 1)
    scale = weight.flatten(1)[:, 0].abs()
    return magnitude * scale.view([-1] + [1] * len(geometry.stride))


class _SignSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, binary: Tensor, magnitude: Tensor, weight: Tensor, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(binary, weight)
        ctx.geometry = geometry
        # A magnitude of 0 gives signs of 0 and a sum of 0, as it should.
        y = convolve(binary.detach().sign(), weight.detach().sign(), geometry)
        return y.mul_(sum_factors(magnitude, weight, geometry))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        binary, weight = ctx.saved_tensors
        of_map, of_weight = convolution_gradients(grad, binary, weight, ctx.geometry, wanted)
        return of_map, None, of_weight, None


def binary_convolution(
    binary: Tensor, weight: Tensor, geometry: Geometry, magnitude: Tensor | None
) -> Tensor:
    """Apply :func:`convolve` to binary values, by sums of signs where that is exact.

    Args:
        binary: Activations with few levels; with a ``magnitude``, only that and its negative (0
            where padded).
        weight: Weight with few levels; with a ``magnitude``, one magnitude per output channel.
        geometry: Geometry of the convolution.
        magnitude: Magnitude of the activations, see :func:`sample_magnitude`; ``None`` if they have
            more than one per sample or the weight more than one per output channel.

    Returns:
        The sums. Gradients are those of :func:`convolve`.
    """
    if magnitude is None or not sums_exactly(binary, weight):
        return convolve(binary, weight, geometry)
    y: Tensor = _SignSum.apply(binary, magnitude, weight, geometry)
    return y


def sums_exactly(x: Tensor, weight: Tensor) -> bool:
    """Return whether the dtypes of activations and weight can hold sums of signs exactly."""
    return x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
