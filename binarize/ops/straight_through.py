"""Straight-through estimators: hard values forward, the gradient of a soft function backward.

Shapes: every function works element-wise on tensors of any shape.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["clip", "error_decay", "hard_sign", "straight_through"]

# IR-Net's estimator changes from the identity to the sign's shape: log10 of its steepness.
_LOG_T_MIN, _LOG_T_MAX = -3.0, 1.0


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, grad


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """Return ``hard`` exactly; gradients go to ``soft`` as if that had been returned.

    Args:
        hard: Values; their inputs get no gradient.
        soft: Tensor of the same shape and dtype.
    """
    return _StraightThrough.apply(hard, soft)


def clip(x: Tensor, low: Any, high: Any) -> Tensor:
    """``torch.clamp`` whose gradient is 1 at the bounds too, in every version of torch.

    Args:
        x: Tensor of any shape.
        low: Lower bound, a number or a tensor; without gradient.
        high: Upper bound, likewise.
    """
    return torch.where((x >= low) & (x <= high), x, x.detach().clamp(low, high))


def hard_sign(x: Tensor) -> Tensor:
    """-1 where ``x < 0``, else +1 (zero and NaN too); same dtype, without gradient."""
    one = torch.ones((), dtype=x.dtype, device=x.device)
    return torch.where(x.detach() < 0, -one, one)


def error_decay(x: Tensor, done: Tensor) -> Tensor:
    r"""Return the function whose derivative is IR-Net's surrogate gradient (Eqs. 9-11).

    .. math::
        k \tanh(t x), \qquad t = 10^{-3 + 4 \cdot \mathrm{done}}, \qquad k = \max(1 / t, 1)

    Its derivative :math:`k t (1 - \tanh^2(t x))` is nearly 1 everywhere at first, and a steep peak
    around 0 at the end. The bounds of t are those of the released code (the paper has 0.1 to 10).

    Args:
        x: Tensor of any shape.
        done: Training progress, 0 to 1, one element.
    """
    t = torch.pow(10.0, _LOG_T_MIN + (_LOG_T_MAX - _LOG_T_MIN) * done)
    k = (1 / t).clamp(min=1.0)
    return k.to(x.dtype) * torch.tanh(t.to(x.dtype) * x)
