"""BiSRNet's activations: an affine map per channel, and a learned slope of the surrogate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.nn.activation_binarizers.base import ActivationBinarizer
from binarize.nn.threshold import ThresholdForm
from binarize.ops.straight_through import hard_sign, straight_through

__all__ = ["RedistributedSign"]


class RedistributedSign(ActivationBinarizer):
    r""":math:`\operatorname{sign}(x')` with :math:`x' = k_c x + b_c`.

    Cai et al., Binarized Spectral Compressive Imaging (BiSRNet), Eqs. 6-8. Surrogate: the gradient
    of :math:`\tanh(\beta x')`, for ``x``, ``k``, ``b`` and ``beta``.

    Args:
        channels: C, at least 1.
        channel_dim: 1 for feature maps, -1 for channels-last tensors.

    Initial values: k = 1, b = 0, beta = 1. Counted: two float parameters per channel, one per
    layer.

    Deviation: sign(0) is +1.
    """

    def __init__(self, channels: int, *, channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim=channel_dim)
        self.k = nn.Parameter(torch.ones(channels))
        self.b = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.ones(1))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.k)
        nn.init.zeros_(self.b)
        nn.init.ones_(self.beta)

    def threshold_form(self) -> ThresholdForm:
        """Return the form; with k = 0, the threshold is minus or plus infinity for any ``x``."""
        k, b = self.k.detach(), self.b.detach()
        return ThresholdForm(b=_crossing(k, b), flip=k < 0)

    def forward(self, x: Tensor) -> Tensor:
        """Binarize a feature map; same shape and dtype, values -1 and +1."""
        line = self.along_channels(self.k, x) * x + self.along_channels(self.b, x)
        return straight_through(hard_sign(line), torch.tanh(self.beta.to(x.dtype) * line))


def _crossing(k: Tensor, b: Tensor) -> Tensor:
    """Return the last number towards which the rounded ``k * x + b`` is not yet negative.

    The rounded quotient may be off by a few numbers; then a packed layer and this module would
    differ for inputs at the threshold.
    """
    infinity = torch.full_like(b, torch.inf)
    t = torch.where(k == 0, torch.where(b < 0, infinity, -infinity), -b / k)
    # At 0 the crossing is exact, except for products that underflow.
    moves = (k != 0) & (b != 0)
    # For a negative slope, larger inputs are the negative ones.
    down, up = -infinity * k.sign(), infinity * k.sign()
    for _ in range(4):
        t = torch.where(moves & (k * t + b < 0), torch.nextafter(t, up), t)
    for _ in range(4):
        below = torch.nextafter(t, down)
        t = torch.where(moves & (k * below + b >= 0), below, t)
    return t
