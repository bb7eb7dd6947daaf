"""BNN's weights: the bare sign."""

from __future__ import annotations

import torch
from torch import Tensor

from binarize.nn.weight_binarizers.base import WeightBinarizer
from binarize.ops.sign import sign

__all__ = ["SignWeight"]


class SignWeight(WeightBinarizer):
    r""":math:`\operatorname{sign}(W)`, without a scale.

    Hubara et al., Binarized Neural Networks, Eqs. 1 and 4. Surrogate gradient: 1 where
    ``|W| <= 1``, else 0.

    Deviations: sign(0) is +1; latent weights are not clipped to [-1, 1] after a step; outside, they
    merely stop moving.
    """

    def scale(self, weight: Tensor) -> Tensor:
        grouped, _ = self.slices(weight)
        return torch.ones(
            grouped.shape[0] * grouped.shape[self.dim + 1], dtype=weight.dtype, device=weight.device
        )

    def stored_scale(self, weight: Tensor) -> Tensor:
        return weight.new_empty(0)

    def unpack(self, bits: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        return super().unpack(bits, self.scale(like), like)

    def forward(self, weight: Tensor) -> Tensor:
        """Binarize ``weight``; values -1 and +1."""
        return sign(weight, "clip")
