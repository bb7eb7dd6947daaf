"""AdaBin's activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Maxout"]


class Maxout(nn.Module):
    r""":math:`\gamma^+_c \max(x, 0) - \gamma^-_c \max(-x, 0)`, two learned slopes per channel.

    Tu et al., AdaBin, Eq. 15. The gradient at 0 is 0, like that of both ReLUs.

    Args:
        channels: C, number of channels.
        channel_dim: 1 for feature maps (N, C, *spatial), -1 for channels-last tensors.

    Initial values: 1 for positive inputs, 0.25 for negative ones (those of the released code).
    Counted: two float parameters per channel.
    """

    def __init__(self, channels: int, *, channel_dim: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.channel_dim = channel_dim
        self.positive = nn.Parameter(torch.ones(channels))
        self.negative = nn.Parameter(torch.full((channels,), 0.25))

    def reset_parameters(self) -> None:
        """Set the slopes to 1 and 0.25."""
        nn.init.ones_(self.positive)
        nn.init.constant_(self.negative, 0.25)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a feature map; same shape and dtype."""
        shape = [1] * x.dim()
        shape[self.channel_dim] = self.channels
        positive = self.positive.view(shape).to(x.dtype)
        negative = self.negative.view(shape).to(x.dtype)
        return positive * x.relu() - negative * (-x).relu()

    def extra_repr(self) -> str:
        return f"{self.channels}"
