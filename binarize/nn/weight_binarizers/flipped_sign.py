"""Signs of a base network with some of them flipped, for a further task that shares its bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from binarize.nn.weight_binarizers.base import WeightBinarizer

__all__ = ["FlippedSign"]

# Gates: log-odds of a flip per unit of latent weight, temperature of the relaxed Bernoulli
# variable, and the latent weights' initial magnitude: a flip's probability is then 1.8 %.
_SLOPE, _TEMPERATURE, _MARGIN = 100.0, 2 / 3, 0.04
# The penalty's gradient when the budget is just used up, relative to the loss's gradient.
_STRENGTH = 0.2
# From this share of the training on, the flips are fixed and only the task's own numbers learn.
_FIXED = 0.6


class _Flip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, base: Tensor, factor: Tensor, push: float) -> Tensor:
        noise = torch.rand_like(weight).clamp_(1e-6, 1 - 1e-6).logit_()
        # Positive: this weight's sign differs from the base's.
        odds = noise.add_(torch.where(base, -weight, weight), alpha=_SLOPE)
        ctx.save_for_backward(weight, base, odds)
        ctx.push = push
        return torch.where((odds > 0) ^ base, factor, -factor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        weight, base, odds = ctx.saved_tensors
        relaxed = torch.sigmoid(odds / _TEMPERATURE)
        grad = grad * (4 * relaxed * (1 - relaxed))
        if ctx.push > 0:
            # Towards the base's sign, as far as the latent weights' start.
            towards = torch.where(base, -1.0, 1.0).to(grad)
            towards = towards * (weight * towards > -_MARGIN)
            grad = grad + towards * (ctx.push * grad.square().mean().sqrt())
        return grad, None, None, None


class FlippedSign(WeightBinarizer):
    r"""Scaled signs that differ from given ones in at most a share of the weights.

    Every weight has a gate, a Bernoulli variable whose log-odds are a multiple of how far the
    latent weight lies beyond zero, on the other side than the base's sign:

    .. math::
        p = \sigma(-c \, s^0 W), \qquad
        \hat W = s_o s^0 (1 - 2 g), \qquad g \sim \operatorname{Bernoulli}(p)

    In training, gates are drawn for each forward pass, and the gradient is that of the relaxed
    variable (binary concrete, temperature 2/3; Louizos et al. 2018, as in Diff-pruning, Guo et al.
    2021), scaled to at most 1. A penalty on the log-odds pulls all gates back to their start; its
    gradient is a share of the loss's, which grows with the square of the flips relative to the
    budget. After 60 % of the training the flips are fixed. In evaluation mode a weight is flipped
    if p > 1/2; of more flips than the budget allows, those with the largest p count.

    Deviations from Diff-pruning: a difference is a flipped sign; the penalty follows a budget
    instead of a coefficient; and it acts on the log-odds rather than on p, whose gradient is
    largest at p = 1/2 and so would hold gates back just before they flip.

    Args:
        inner: The base's weight binarizer: signs times one scale per slice, which does not change,
            as a norm follows.
        weight: The base's latent weight.
        budget: Largest share of flipped weights, 0 to 1.
    """

    base: Tensor
    factor: Tensor
    stored: Tensor

    def __init__(self, inner: WeightBinarizer, weight: Tensor, budget: float) -> None:
        super().__init__(inner.dim, inner.groups)
        # Not in the state_dict: they are the base's.
        self.register_buffer("base", inner.signs(weight) > 0, persistent=False)
        self.register_buffer("factor", inner.scale(weight).detach().clone(), persistent=False)
        stored = inner.stored_scale(weight).detach().clone()
        self.register_buffer("stored", stored, persistent=False)
        self.budget = budget
        self.fixed = False
        self._known: tuple[Any, Tensor] | None = None

    def latent(self, weight: Tensor) -> Tensor:
        """Return the initial latent weight: no sign is flipped."""
        return torch.where(self.base, _MARGIN, -_MARGIN).to(weight)

    def set_progress(self, done: float) -> None:
        """Fix the flips after 60 % of the training."""
        self.fixed = done >= _FIXED

    def flips(self, weight: Tensor) -> Tensor:
        """Return which weights are flipped, within the budget."""
        beyond = torch.where(self.base, -weight, weight).detach()
        flipped = (weight.detach() < 0) == self.base
        allowed = int(self.budget * weight.numel())
        if int(flipped.sum()) > allowed:
            best = beyond.masked_fill(~flipped, -1.0).flatten().topk(allowed).indices
            chosen = torch.zeros(flipped.numel(), dtype=torch.bool, device=flipped.device)
            chosen[best] = True
            flipped = chosen.view(flipped.shape)
        return flipped

    def signs(self, weight: Tensor) -> Tensor:
        """Return the base's signs with the flips, -1 and +1."""
        # Inference tensors have no version: nothing tells whether they changed.
        key = None if weight.is_inference() else (weight.data_ptr(), weight._version, weight.dtype)
        if key is None or self._known is None or self._known[0] != key:
            one = torch.ones((), dtype=weight.dtype, device=weight.device)
            self._known = key, torch.where(self.flips(weight) ^ self.base, one, -one)
        return self._known[1]

    def scale(self, weight: Tensor) -> Tensor:
        """Return the base's scales."""
        return self.factor.to(weight)

    def stored_scale(self, weight: Tensor) -> Tensor:
        """Return the scales that the base stores with its bits."""
        return self.stored.to(weight)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the effective weight; gates are drawn in training mode."""
        factor = self.spread(self.factor.to(weight), weight)
        if not self.training or self.fixed:
            return self.signs(weight) * factor
        share = float(((weight.detach() < 0) == self.base).float().mean())
        push = _STRENGTH * min(share / max(self.budget, 1e-9), 10.0) ** 2
        made: Tensor = _Flip.apply(weight, self.base, factor, push)
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": None}

    def extra_repr(self) -> str:
        return f"budget={self.budget}, {super().extra_repr()}"
