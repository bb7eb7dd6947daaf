"""Shifted PReLU as one function.

Shapes: maps of any rank; ``dim`` is the dimension of the channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["shifted_prelu"]


class _ShiftedPReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor, slope: Tensor, out_shift: Tensor | None, dim: int
    ) -> Tensor:
        shape = [1] * x.dim()
        shape[dim] = -1
        shifted = x + shift.view(shape).to(x.dtype)
        ctx.save_for_backward(shifted, slope)
        ctx.dim = dim
        offset = None if out_shift is None else out_shift.view(shape).to(x.dtype)
        if dim == 1:
            y = F.prelu(shifted, slope.to(x.dtype))
            return y if offset is None else y.add_(offset)
        # Not a view, which a network could not change in place behind a function of its own.
        y = F.prelu(shifted.transpose(1, dim), slope.to(x.dtype)).transpose(1, dim)
        return y.clone() if offset is None else y + offset

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shifted, slope = ctx.saved_tensors
        positions = [d for d in range(1, grad.dim()) if d != ctx.dim % grad.dim()]
        shape = [1] * grad.dim()
        shape[ctx.dim] = -1
        wide = torch.promote_types(grad.dtype, torch.float32)

        def total(part: Tensor) -> Tensor:
            # In two steps, which for half precision is quicker and more exact than one.
            per_sample = part.sum(positions) if positions else part
            return per_sample.sum(0, dtype=wide).to(slope.dtype)

        # torch's own backward of prelu is slower than these passes on a CPU, and takes two buffers.
        buffer = shifted.clamp(max=0).mul_(grad)
        grad_slope = total(buffer)
        torch.ops.aten.threshold_backward.grad_input(grad, shifted, 0, grad_input=buffer)
        grad_x = buffer.lerp_(grad, slope.view(shape).to(grad.dtype))
        grad_out_shift = total(grad) if ctx.needs_input_grad[3] else None
        return grad_x, total(grad_x), grad_slope, grad_out_shift, None


def shifted_prelu(
    x: Tensor, shift: Tensor, slope: Tensor, out_shift: Tensor | None, dim: int = 1
) -> Tensor:
    """``prelu(x + shift, slope) + out_shift`` per channel; see :class:`binarize.nn.ShiftedPReLU`.

    Args:
        x: Floating-point map of at least two dimensions, C channels.
        shift: (C,).
        slope: (C,).
        out_shift: (C,), or ``None`` for 0.
        dim: Dimension of the channels, 1 or -1.

    Returns:
        Map of the same shape and dtype. Sums of the parameters' gradients over samples are taken
        in single precision at least.
    """
    return _ShiftedPReLU.apply(x, shift, slope, out_shift, dim)
