"""DoReFa-Net's 1-bit weights: one scale for the whole tensor."""

from __future__ import annotations

from torch import Tensor

from binarize.nn.weight_binarizers.base import WeightBinarizer
from binarize.ops.straight_through import hard_sign, straight_through

__all__ = ["TensorSign"]


class TensorSign(WeightBinarizer):
    r""":math:`\overline{|W|} \operatorname{sign}(W)` with the mean over all weights of the layer.

    Zhou et al., DoReFa-Net, Eq. 9. The mean is detached. Surrogate gradient: 1 everywhere.

    Deviation: sign(0) is +1. The mean is computed so that it is exact if all magnitudes are equal,
    see :meth:`~binarize.nn.weight_binarizers.base.WeightBinarizer.mean`.
    """

    def scale(self, weight: Tensor) -> Tensor:
        """Return one number."""
        magnitude = weight.detach().abs().flatten()
        first = magnitude[:1]
        return first + (magnitude - first).mean(0, keepdim=True)

    def spread(self, scale: Tensor, weight: Tensor) -> Tensor:
        return scale.view([1] * weight.dim())

    def forward(self, weight: Tensor) -> Tensor:
        """Binarize ``weight``."""
        return straight_through(hard_sign(weight) * self.scale(weight), weight)
