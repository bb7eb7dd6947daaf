"""Shifted PReLU as one function.

Shapes: feature maps of any rank; ``dim`` is the channel dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from binarize.ops.rows import along_rows

__all__ = ["shifted_prelu"]


class _ShiftedPReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor, slope: Tensor, out_shift: Tensor | None, dim: int
    ) -> Tensor:
        shape = [1] * x.dim()
        shape[dim] = -1
        shifted = x + along_rows(shift.view(shape).to(x.dtype), x)
        ctx.save_for_backward(shifted, slope)
        ctx.dim = dim
        # The kernel behind F.prelu, which only accepts channels at dimension 1.
        slopes = along_rows(slope.view(shape).to(x.dtype), x)
        y: Tensor = torch.ops.aten._prelu_kernel(shifted, slopes)
        return y if out_shift is None else y.add_(along_rows(out_shift.view(shape).to(x.dtype), x))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shifted, slope = ctx.saved_tensors
        positions = [d for d in range(1, grad.dim()) if d != ctx.dim % grad.dim()]
        shape = [1] * grad.dim()
        shape[ctx.dim] = -1
        wide = torch.promote_types(grad.dtype, torch.float32)

        def total(part: Tensor) -> Tensor:
            # In two steps: for half precision faster and more accurate than one.
            per_sample = part.sum(positions) if positions else part
            return per_sample.sum(0, dtype=wide).to(slope.dtype)

        # torch's own backward of prelu is slower on a CPU, and takes two buffers.
        buffer = shifted.clamp(max=0).mul_(grad)
        grad_slope = total(buffer)
        torch.ops.aten.threshold_backward.grad_input(grad, shifted, 0, grad_input=buffer)
        grad_x = buffer.lerp_(grad, along_rows(slope.view(shape).to(grad.dtype), grad))
        grad_out_shift = total(grad) if ctx.needs_input_grad[3] else None
        return grad_x, total(grad_x), grad_slope, grad_out_shift, None


def shifted_prelu(
    x: Tensor, shift: Tensor, slope: Tensor, out_shift: Tensor | None, dim: int = 1
) -> Tensor:
    """``prelu(x + shift, slope) + out_shift`` per channel; see :class:`binarize.nn.ShiftedPReLU`.

    Args:
        x: Floating-point feature map of at least two dimensions, C channels.
        shift: (C,).
        slope: (C,).
        out_shift: (C,), or ``None`` for 0.
        dim: Channel dimension, 1 or -1.

    Returns:
        Feature map of the same shape and dtype. The parameters' gradients are summed over samples
        in at least single precision.
    """
    return _ShiftedPReLU.apply(x, shift, slope, out_shift, dim)
