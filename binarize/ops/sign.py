"""The sign function with surrogate gradients.

Shapes: every function works element-wise on tensors of any shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from binarize.errors import BinarizeError

__all__ = [
    "SURROGATES",
    "clip_gradient",
    "clip_gradient_",
    "polynomial_gradient_",
    "scaled_sign",
    "sign",
]

SURROGATES = ("polynomial", "clip")


def clip_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """``grad`` where ``|x| <= 1``, else 0."""
    # The kernel excludes its bounds; the next number after 1 includes 1 itself.
    bound = 1 + torch.finfo(x.dtype).eps
    return torch.ops.aten.hardtanh_backward(grad, x, -bound, bound)


def clip_gradient_(grad: Tensor, x: Tensor) -> Tensor:
    """As :func:`clip_gradient`, written into ``grad``."""
    bound = 1 + torch.finfo(x.dtype).eps
    return torch.ops.aten.hardtanh_backward.grad_input(grad, x, -bound, bound, grad_input=grad)


def polynomial_gradient_(size: Tensor, grad: Tensor, scale: Tensor) -> Tensor:
    """``scale * (2 - 2 size) * grad`` where ``size < 1``, else 0, written into ``size``.

    In operations of two tensors each: torch has no vectorized broadcasting ones of three.

    Args:
        size: Magnitudes.
        grad: Gradient of the same shape and dtype.
        scale: Broadcasts to them.
    """
    return size.sub_(1).clamp_(max=0).mul_(grad).mul_(-2 * scale)


class _PolynomialSign(torch.autograd.Function):
    # copysign and these few operations are many times faster than torch.where on a CPU.

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return torch.copysign(scale, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        x, scale = ctx.saved_tensors
        grad_x = polynomial_gradient_(x.abs(), grad, scale)
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        ones = torch.ones((), dtype=x.dtype, device=x.device)
        return grad_x, torch.copysign(ones, x).mul_(grad).sum_to_size(scale.shape)


class _ClipSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.copysign(torch.ones((), dtype=x.dtype, device=x.device), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return clip_gradient(grad, x)


def _without_special_signs(x: Tensor) -> Tensor:
    """Make NaN and -0.0 positive, so that the sign bit equals ``x < 0``."""
    return torch.fmin(x, torch.full((), torch.inf, dtype=x.dtype, device=x.device)) + 0.0


def sign(x: Tensor, surrogate: str = "polynomial") -> Tensor:
    """Return the two-valued sign: +1 where ``x >= 0`` and -1 elsewhere.

    Forward, BiDense Eq. 1: ``sign(0) = +1`` (``torch.sign`` gives 0, which would make a network
    ternary). ``-0.0`` and NaN give +1 as well.

    Backward, the surrogate gradient:

    - ``"polynomial"`` (ApproxSign, Bi-Real Net, used for activations): ``(2 - 2|x|)`` where
      ``|x| < 1``, else 0.
    - ``"clip"`` (straight-through estimator, BNN, used for latent weights): 1 where
      ``|x| <= 1``, else 0.

    Args:
        x: Tensor of any shape, floating point.
        surrogate: One of ``"polynomial"`` and ``"clip"``.

    Returns:
        Tensor of the shape and dtype of ``x`` with the values -1 and +1.

    Raises:
        BinarizeError: ``surrogate`` is unknown, or ``x`` is not floating point.
    """
    if not x.is_floating_point():
        raise BinarizeError(
            "x", x.dtype, "sign needs a floating-point tensor", "convert it with x.float()"
        )
    if surrogate == "polynomial":
        return _PolynomialSign.apply(_without_special_signs(x), x.new_ones(()))
    if surrogate == "clip":
        return _ClipSign.apply(_without_special_signs(x))
    raise BinarizeError(
        "surrogate", surrogate, "no such surrogate gradient", f"use one of {', '.join(SURROGATES)}"
    )


def scaled_sign(x: Tensor, scale: Tensor) -> Tensor:
    """``scale * sign(x)`` with the polynomial surrogate, in one pass over ``x``.

    Args:
        x: Floating-point tensor. The sign bit decides, so -0.0 counts as negative: the caller must
            ensure that there is none.
        scale: Positive scale of the same dtype that broadcasts to ``x`` without enlarging it.

    Returns:
        Tensor of the shape and dtype of ``x``. Gradients reach ``x`` as ``scale`` times the
        surrogate's and ``scale`` through the product.
    """
    return _PolynomialSign.apply(x, scale)
