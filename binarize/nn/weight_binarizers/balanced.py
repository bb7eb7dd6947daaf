"""IR-Net's weights: balanced, standardized, scaled by a power of two."""

from __future__ import annotations

import torch
from torch import Tensor

from binarize.nn.weight_binarizers.base import WeightBinarizer, centred_signs
from binarize.ops.straight_through import error_decay, hard_sign, straight_through

__all__ = ["BalancedSign"]

# Keeps the derivative of the square root finite if all weights of a slice are equal.
_EPSILON = 1e-12


class BalancedSign(WeightBinarizer):
    r""":math:`2^{s_o} \operatorname{sign}(\hat W)` of standardized weights, scaled by a power of 2.

    Qin et al., IR-Net, Eqs. 5-8 (Libra-PB) and 9-11 (EDE). With
    :math:`\hat W = (W - \overline{W_o}) / \sigma_o` and
    :math:`s_o = \operatorname{round}(\log_2 \overline{|\hat W_o|})`, detached, and the deviation
    with n - 1. Surrogate gradient of the sign: :math:`k t (1 - \tanh^2(t \hat W))`, see
    :func:`binarize.ops.straight_through.error_decay`; mean and deviation are not detached.

    State: the buffers ``progress`` (of the schedule) and ``scales``, one number per slice.

    Deviations: a slice of one weight is neither centered nor standardized (it would be 0); 1e-12
    is added to the variance. sign(0) is +1; t changes every step, not every epoch.
    """

    progress: Tensor
    scales: Tensor

    def __init__(self, dim: int = 0, groups: int = 1) -> None:
        super().__init__(dim, groups)
        self.register_buffer("progress", torch.zeros(()))

    def set_progress(self, done: float) -> None:
        """Set the share of the training that is done, 0 to 1."""
        self.progress.fill_(done)

    def start(self, weight: Tensor) -> None:
        self.progress = torch.zeros((), dtype=weight.dtype, device=weight.device)
        self.register_buffer("scales", self._fresh(weight.detach()))

    def standardized(self, weight: Tensor) -> Tensor:
        """Return the weight with mean 0 and deviation 1 in each slice."""
        size = self.slice_size(weight)
        if size == 1:
            return weight
        centred = weight - self.spread(self.mean(weight), weight)
        variance = self.mean(centred * centred) * (size / (size - 1))
        return centred / self.spread((variance + _EPSILON).sqrt(), weight)

    def _fresh(self, weight: Tensor) -> Tensor:
        return torch.exp2(self.mean(self.standardized(weight).abs()).log2().round())

    def scale(self, weight: Tensor) -> Tensor:
        return self.scales

    def signs(self, weight: Tensor) -> Tensor:
        return hard_sign(self.standardized(weight.detach()))

    def stored_scale(self, weight: Tensor) -> Tensor:
        return weight.new_empty(0)

    def unpack(self, bits: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        signs = super().unpack(bits, torch.ones_like(self.scales), like)
        grouped, over = self.slices(signs)
        if signs.numel() == self.scales.numel():
            return signs
        return centred_signs(grouped, over).reshape(signs.shape)

    def forward(self, weight: Tensor) -> Tensor:
        """Binarize ``weight``."""
        standard = self.standardized(weight)
        if self.training:
            with torch.no_grad():
                self.scales.copy_(self._fresh(weight))
        signs = straight_through(hard_sign(standard), error_decay(standard, self.progress))
        return signs * self.spread(self.scales.clone(), weight)
