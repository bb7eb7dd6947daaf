"""ReActNet's RSign."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.nn.activation_binarizers.base import ActivationBinarizer
from binarize.nn.threshold import ThresholdForm
from binarize.ops.sign import sign

__all__ = ["ShiftedSign"]


class ShiftedSign(ActivationBinarizer):
    r""":math:`\operatorname{sign}(x + b_c)` with a learned shift per channel.

    Liu et al., ReActNet, Eq. 2 (there the threshold is written as its negative). Surrogate
    gradient: ``2 - 2|x + b|`` where ``|x + b| < 1``, else 0, for ``x`` and for ``b``.

    Args:
        channels: C, at least 1.
        channel_dim: 1 for feature maps, -1 for channels-last tensors.

    Initial values: b = 0. Counted: one float parameter per channel.

    Deviation: sign(0) is +1.
    """

    def __init__(self, channels: int, *, channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim=channel_dim)
        self.b = nn.Parameter(torch.zeros(channels))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.b)

    def threshold_form(self) -> ThresholdForm:
        return ThresholdForm(b=-self.b.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Binarize a feature map; same shape and dtype, values -1 and +1."""
        return sign(x + self.along_channels(self.b, x))
