"""BiT's weights: centered and scaled over the whole layer."""

from __future__ import annotations

import torch
from torch import Tensor

from binarize.nn.weight_binarizers.base import WeightBinarizer, centred_signs
from binarize.ops.straight_through import hard_sign, straight_through

__all__ = ["LayerCentredSign"]


class LayerCentredSign(WeightBinarizer):
    r""":math:`\overline{|W|} \operatorname{sign}(W - \overline{W})`, means over the whole layer.

    Liu et al., BiT: Robustly Binarized Multi-distilled Transformer, Section 3.1. Both means are
    detached. Surrogate gradient: 1 everywhere.

    State: the buffer ``scales``, one number.

    Deviation: sign(0) is +1.
    """

    scales: Tensor

    def start(self, weight: Tensor) -> None:
        self.register_buffer("scales", weight.detach().abs().mean().view(1))

    def scale(self, weight: Tensor) -> Tensor:
        return self.scales

    def spread(self, scale: Tensor, weight: Tensor) -> Tensor:
        return scale.view([1] * weight.dim())

    def signs(self, weight: Tensor) -> Tensor:
        flat = weight.detach().flatten()
        # Exact if all weights are equal, see WeightBinarizer.mean.
        centre = flat[:1] + (flat - flat[:1]).mean()
        return hard_sign(weight - self.spread(centre, weight))

    def stored_scale(self, weight: Tensor) -> Tensor:
        return weight.new_empty(0)

    def unpack(self, bits: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        signs = super().unpack(bits, torch.ones_like(self.scales), like)
        centred = centred_signs(signs, list(range(signs.dim())))
        # With the same mean magnitude as before, so that training can continue.
        return centred * (self.scales / centred.abs().mean().clamp(min=1e-12))

    def forward(self, weight: Tensor) -> Tensor:
        """Binarize ``weight``."""
        if self.training:
            with torch.no_grad():
                self.scales.copy_(weight.abs().mean())
        scale = self.spread(self.scales.clone(), weight)
        return straight_through(self.signs(weight) * scale, weight)
