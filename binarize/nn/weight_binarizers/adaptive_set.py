"""AdaBin's weights: two values per output channel instead of -1 and +1."""

from __future__ import annotations

import torch
from torch import Tensor

from binarize.nn.weight_binarizers.base import WeightBinarizer
from binarize.ops.straight_through import error_decay, hard_sign, straight_through

__all__ = ["AdaptiveSetWeight"]

# Keeps the derivative of the square root finite if all weights of a slice are equal.
_EPSILON = 1e-12


class AdaptiveSetWeight(WeightBinarizer):
    r""":math:`\alpha_o \operatorname{sign}((W - \beta_o) / \alpha_o) + \beta_o`.

    Tu et al., AdaBin, Eqs. 6-9: :math:`\beta_o` is the mean of a slice and :math:`\alpha_o` its
    standard deviation (with n). Surrogate gradient of the sign: IR-Net's,
    :math:`k t (1 - \tanh^2(t u))`, see :func:`binarize.ops.straight_through.error_decay`; mean and
    deviation are not detached, as in the released code.

    State: the buffers ``progress`` (of the schedule), ``scales`` and ``offsets``, one number per
    slice each.

    Counting bits alone is not exact: packed layers add beta times the sum of the activations.

    Deviations: with groups, n counts the weights of the slice (the released code counts those of
    all groups); 1e-12 is added to the variance. sign(0) is +1; t changes every step.
    """

    popcount_exact = False
    has_planes = True
    progress: Tensor
    scales: Tensor
    offsets: Tensor

    def __init__(self, dim: int = 0, groups: int = 1) -> None:
        super().__init__(dim, groups)
        self.register_buffer("progress", torch.zeros(()))

    def set_progress(self, done: float) -> None:
        """Set the share of the training that is done, 0 to 1."""
        self.progress.fill_(done)

    def start(self, weight: Tensor) -> None:
        self.progress = torch.zeros((), dtype=weight.dtype, device=weight.device)
        scales, offsets = self._fresh(weight.detach())
        self.register_buffer("scales", scales)
        self.register_buffer("offsets", offsets)

    def _fresh(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        centre = self.mean(weight)
        centred = weight - self.spread(centre, weight)
        return (self.mean(centred * centred) + _EPSILON).sqrt(), centre

    def scale(self, weight: Tensor) -> Tensor:
        return self.scales

    def offset(self, weight: Tensor) -> Tensor:
        return self.offsets

    def signs(self, weight: Tensor) -> Tensor:
        return hard_sign(weight.detach() - self.spread(self.offsets, weight))

    def stored_scale(self, weight: Tensor) -> Tensor:
        return weight.new_empty(0)

    def unpack(self, bits: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        """Return the two effective values; the sign of their distance to the center is exact."""
        signs = super().unpack(bits, torch.ones_like(self.scales), like)
        return signs * self.spread(self.scales, signs) + self.spread(self.offsets, signs)

    def forward(self, weight: Tensor) -> Tensor:
        """Binarize ``weight``."""
        if self.training:
            scales, centre = self._fresh(weight)
            with torch.no_grad():
                self.scales.copy_(scales)
                self.offsets.copy_(centre)
        else:
            scales, centre = self.scales, self.offsets
        scales, centre = self.spread(scales, weight), self.spread(centre, weight)
        u = (weight - centre) / scales
        return straight_through(hard_sign(u), error_decay(u, self.progress)) * scales + centre
