"""BiT's elastic binarization of signed activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from binarize.nn.activation_binarizers.base import ActivationBinarizer
from binarize.nn.threshold import ThresholdForm
from binarize.ops.straight_through import clip, hard_sign, straight_through

__all__ = ["ElasticSign"]

_SMALLEST = 1e-5


class ElasticSign(ActivationBinarizer):
    r""":math:`\alpha \operatorname{sign}(x + b_c)` with a learned scale and a shift per channel.

    Liu et al., BiT: Robustly Binarized Multi-distilled Transformer, Section 3.2. Surrogate gradient
    for ``x`` and ``b``: 1 where ``|x + b| <= alpha``, else 0; for alpha, the sum of the signs times
    the incoming gradient, divided by the square root of the feature map's size (as in learned step
    size quantization).

    Args:
        channels: C, at least 1.
        channel_dim: 1 for feature maps, -1 for channels-last tensors.

    Initial values: b = 0; alpha is twice the mean magnitude of the first batch in training mode
    (the buffer ``started`` records whether there was one), and 1 until then. Alpha is at least
    1e-5. Counted: one float parameter per channel, one per layer.

    Deviations: there is no {0, 1} form for inputs after a ReLU; every input is treated as signed.
    sign(0) is +1.
    """

    started: Tensor

    def __init__(self, channels: int, *, channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim=channel_dim)
        self.alpha = nn.Parameter(torch.ones(1))
        self.b = nn.Parameter(torch.zeros(channels))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.alpha)
        nn.init.zeros_(self.b)
        self.started.zero_()

    def threshold_form(self) -> ThresholdForm:
        return ThresholdForm(b=-self.b.detach(), factor=self.alpha.detach().clamp(min=_SMALLEST))

    def forward(self, x: Tensor) -> Tensor:
        """Binarize a feature map; same shape and dtype, values -alpha and +alpha."""
        x = x + self.along_channels(self.b, x)
        if self.training and x.numel():
            with torch.no_grad():
                first = 2 * x.abs().mean(dtype=self.alpha.dtype)
                self.alpha.copy_(torch.where(self.started, self.alpha, first))
                self.started.fill_(True)
        signs = hard_sign(x)
        alpha = self.alpha.clamp(min=_SMALLEST).to(x.dtype)
        fixed = alpha.detach()
        through_x = fixed * clip(x / fixed, -1.0, 1.0)
        through_alpha = signs * alpha / math.sqrt(max(x.numel(), 1))
        return straight_through(signs * fixed, through_x + through_alpha)
