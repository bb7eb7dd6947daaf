"""Sums over binary values: convolutions and linear maps whose scales are put on afterwards.

A sum of signs is a whole number, exact in whatever order it is taken, so that a layer that counts
bits has the same one. Where a map has one magnitude per sample and a weight one per output channel,
both leave the sum, and the signs are summed alone. In half precision a long sum would be rounded
all the same; there the scaled values are summed.
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
    """How a weight is laid over a map.

    Attributes:
        stride: Per spatial dimension; empty for a linear map, which has the channels last.
        padding: Zeros on both sides, per spatial dimension.
        dilation: Per spatial dimension.
        transposed: Whether it is a transposed convolution.
        output_padding: Per spatial dimension.
        groups: Of channels.
        pads: Zeros put around the map first, as ``torch.nn.functional.pad`` takes them.
    """

    stride: Sequence[int] = ()
    padding: Sequence[int] = ()
    dilation: Sequence[int] = ()
    transposed: bool = False
    output_padding: Sequence[int] = ()
    groups: int = 1
    pads: Sequence[int] = ()


# Not torch.convolution, which autocast does not know.
_PLAIN: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Any] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def _padded(pads: Sequence[int]) -> bool:
    # A graph for all sizes must not depend on whether this one needs zeros.
    return bool(pads) and (torch.compiler.is_compiling() or any(pads))


def convolve(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolution or linear map, of whatever values.

    Args:
        x: Map (N, C_in, *spatial), or (N, *positions, C_in) for a linear map.
        weight: As torch's layer of that geometry has it.
        geometry: How.
    """
    stride, padding, dilation, transposed, output_padding, groups, pads = geometry
    if not stride:
        return F.linear(x, weight)
    if _padded(pads):
        x = F.pad(x, list(pads))
    rank = len(stride)
    if transposed:
        rest = stride, padding, output_padding, groups, dilation
        return _TRANSPOSED[rank](x, weight, None, *rest)
    return _PLAIN[rank](x, weight, None, stride, padding, dilation, groups)


def convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`convolve`, in the type of ``grad``.

    Args:
        grad: Of its result.
        x: As there; autocast may have run it in another type.
        weight: As there.
        geometry: As there.
        wanted: Whether those of ``x`` and of ``weight`` are wanted.
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
    """The magnitude of a map that has one per sample: (N, 1, ...)."""
    return binary.detach()[(slice(None), *[slice(1)] * (binary.dim() - 1))].abs()


def sum_factors(magnitude: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """What sums of signs have to be multiplied by.

    Args:
        magnitude: Of the map, (N, 1, ...).
        weight: Values of one magnitude per output channel, or these magnitudes themselves, which
            broadcast to them.
        geometry: How the weight is laid over the map.

    Returns:
        Tensor that broadcasts to the sums.
    """
    weight = weight.detach()
    if geometry.transposed:
        # (in, out / groups, ...): the first input channel of each group has all of its outputs.
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
        # A magnitude of 0 makes signs of 0, and a sum of 0, which it is.
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
    """:func:`convolve` for binary values, by sums of signs where that is exact.

    Args:
        binary: Map of few levels; with a ``magnitude``, of that and its negative (0 where it was
            padded).
        weight: Of few levels; with a ``magnitude``, of one magnitude per output channel.
        geometry: How the weight is laid over the map.
        magnitude: Of the map, see :func:`sample_magnitude`; ``None`` where the map has more than
            one per sample or the weight more than one per output channel.

    Returns:
        The sums. Gradients are those of :func:`convolve`.
    """
    if magnitude is None or not sums_exactly(binary, weight):
        return convolve(binary, weight, geometry)
    y: Tensor = _SignSum.apply(binary, magnitude, weight, geometry)
    return y


def sums_exactly(x: Tensor, weight: Tensor) -> bool:
    """Whether map and weight are of a type that holds their sums of signs."""
    return x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
