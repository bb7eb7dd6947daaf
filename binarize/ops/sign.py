"""The sign function with surrogate gradients.

Shapes: every function works element-wise on tensors of any shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from binarize.errors import BinarizeError

__all__ = ["SURROGATES", "sign"]

SURROGATES = ("polynomial", "clip")


def _plus_minus_one(x: Tensor) -> Tensor:
    # Comparing with "< 0" sends both zeros, and NaN, to +1.
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


class _PolynomialSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _plus_minus_one(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return x.abs().mul_(-2).add_(2).clamp_(min=0).mul_(grad)


class _ClipSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _plus_minus_one(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() <= 1, grad, 0)


def sign(x: Tensor, surrogate: str = "polynomial") -> Tensor:
    """Sign with two values: +1 where ``x >= 0`` and -1 elsewhere.

    Forward, BiDense Eq. 1: ``sign(0) = +1`` (``torch.sign`` gives 0, which would make a network
    ternary). ``-0.0`` and NaN give +1 as well.

    Backward, the derivative that stands in for the sign's:

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
        return _PolynomialSign.apply(x)
    if surrogate == "clip":
        return _ClipSign.apply(x)
    raise BinarizeError(
        "surrogate", surrogate, "no such surrogate gradient", f"use one of {', '.join(SURROGATES)}"
    )
