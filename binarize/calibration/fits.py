"""Closed forms: norms and activations that match given values best, per channel.

Shape legend: P positions, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from binarize.nn.activations import Maxout, ShiftedPReLU

__all__ = ["Moments", "Slopes", "set_norm"]


class Moments:
    """Means, variances and covariance of two tensors (P, C), accumulated."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: Tensor | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in positions of both."""
        x, y = x.double(), y.double()
        sums = torch.stack([x.sum(0), (x * x).sum(0), y.sum(0), (x * y).sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums
        self.count += len(x)

    def result(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return mean and variance of the first, mean of the second, covariance; (C) each."""
        assert self._sums is not None
        x, xx, y, xy = self._sums / self.count
        return x, (xx - x * x).clamp(min=0), y, xy - x * y


@torch.no_grad()
def set_norm(norm: Any, moments: tuple[Tensor, Tensor, Tensor, Tensor], count: int) -> None:
    r"""Give a batch norm the gain and bias with which its output matches given values best.

    With the mean and variance of its input x as statistics, and values t:

    .. math::
        \gamma = \operatorname{cov}(x, t) / \operatorname{var}(x) \cdot \sqrt{\operatorname{var}(x)
        + \epsilon}, \qquad \beta = \bar t

    so that gain and bias fit in training mode too. Without gain and bias, statistics are all there
    is to set. A channel that is constant has gain 1.

    Args:
        norm: The batch norm, changed in place.
        moments: Of input and values, see :class:`Moments`.
        count: Positions they were taken over.
    """
    mean, variance, value, both = moments
    if norm.running_mean is not None:
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance * (count / max(count - 1, 1)))
        statistic = norm.running_var.double()
    else:
        statistic = variance
    if norm.weight is not None:
        # Below rounding errors of the sums nothing varies.
        varies = variance > 1e-12 * (variance + mean.square())
        slope = both / torch.where(varies, variance, torch.ones_like(variance))
        gain = slope * (statistic + norm.eps).sqrt()
        norm.weight.copy_(torch.where(varies, gain, torch.ones_like(gain)))
        norm.bias.copy_(value)


class Slopes:
    r"""Least squares of an activation's slopes, and of what it adds, to given values.

    For :class:`~binarize.nn.ShiftedPReLU` the slope a and the shift behind it, if it has one, in
    :math:`\max(x + \gamma, 0) + a \min(x + \gamma, 0) + \zeta`; for Maxout both slopes. Others have
    nothing to fit.

    Args:
        module: The activation.
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self._gram: Tensor | None = None
        self._cross: Tensor | None = None

    @staticmethod
    def fits(module: Any) -> bool:
        """Whether an activation has slopes."""
        return isinstance(module, ShiftedPReLU | Maxout)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in inputs and values, (P, C) each."""
        module, x, y = self.module, x.double(), y.double()
        if isinstance(module, ShiftedPReLU):
            x = x + module.shift.detach()
            y = y - x.clamp(min=0)
            terms = [x.clamp(max=0)]
            if module.out_shift is not None:
                terms.append(torch.ones_like(x))
        else:
            terms = [x.clamp(min=0), x.clamp(max=0)]
        known = torch.stack(terms, -1)
        gram = torch.einsum("pci,pcj->cij", known, known)
        cross = torch.einsum("pci,pc->ci", known, y)
        self._gram = gram if self._gram is None else self._gram + gram
        self._cross = cross if self._cross is None else self._cross + cross

    @torch.no_grad()
    def apply(self) -> None:
        """Set what was fitted; what no input tells anything about stays as it is."""
        assert self._gram is not None
        assert self._cross is not None
        module, gram, cross = self.module, self._gram, self._cross
        if isinstance(module, ShiftedPReLU):
            names = ["slope"] + ["out_shift"] * (module.out_shift is not None)
        else:
            names = ["positive", "negative"]
        now = torch.stack([getattr(module, name).detach().double() for name in names], -1)
        # The change from what is there, of least norm: zero where nothing is known.
        rest = cross - torch.einsum("cij,cj->ci", gram, now)
        change = torch.linalg.pinv(gram, hermitian=True, rtol=1e-10) @ rest[..., None]
        for index, name in enumerate(names):
            getattr(module, name).copy_(now[:, index] + change[:, index, 0])
