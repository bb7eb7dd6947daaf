"""XNOR-Net's activations: a sign with the sample's mean magnitude."""

from __future__ import annotations

import torch
from torch import Tensor

from binarize.nn.activation_binarizers.base import ActivationBinarizer
from binarize.nn.threshold import ThresholdForm
from binarize.ops.sign import sign

__all__ = ["MagnitudeSign"]


class MagnitudeSign(ActivationBinarizer):
    r""":math:`\overline{|x_n|} \operatorname{sign}(x_n)`, the mean over all elements of a sample.

    Rastegari et al., XNOR-Net, Eq. 8. The mean is detached. Surrogate gradient: the mean where
    ``|x| <= 1``, else 0. No parameters.

    Args:
        channels: C, at least 1.
        channel_dim: 1 for feature maps, -1 for channels-last tensors.

    Deviations: the paper has one scale per window of the convolution (the matrix K, Section 3.2),
    its released code none; one per sample is the coarsest of the paper's scales, and factors out.
    sign(0) is +1.
    """

    def threshold_form(self) -> ThresholdForm:
        return ThresholdForm(b=torch.zeros(self.channels), scale="magnitude")

    def forward(self, x: Tensor) -> Tensor:
        """Binarize a feature map; same shape and dtype."""
        wide = torch.promote_types(x.dtype, torch.float32)
        mean = x.detach().abs().mean(list(range(1, x.dim())), keepdim=True, dtype=wide)
        return sign(x, "clip") * mean.to(x.dtype)
