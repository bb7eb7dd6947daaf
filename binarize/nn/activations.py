"""Activations that follow a binary layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.ops.shifted_prelu import shifted_prelu

__all__ = ["ShiftedPReLU"]


class ShiftedPReLU(nn.Module):
    r"""Shifted PReLU: :math:`\mathrm{PReLU}_c(x + \gamma_c) + \zeta_c`, ReActNet's RPReLU.

    Args:
        channels: C, number of channels.
        out_shift: Whether the second shift :math:`\zeta` exists (three values per channel, as in
            ReActNet; the released BiDense layers have two).
        channel_dim: 1 for feature maps (N, C, *spatial), -1 for channels-last tensors.

    Initial values: both shifts 0, slope 0.25.
    """

    def __init__(self, channels: int, *, out_shift: bool = True, channel_dim: int = 1) -> None:
        super().__init__()
        self.channels = channels
        self.channel_dim = channel_dim
        self.shift = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.out_shift = nn.Parameter(torch.zeros(channels)) if out_shift else None

    def reset_parameters(self) -> None:
        """Set the shifts to 0 and the slope to 0.25."""
        nn.init.zeros_(self.shift)
        nn.init.constant_(self.slope, 0.25)
        if self.out_shift is not None:
            nn.init.zeros_(self.out_shift)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a feature map; same shape and dtype."""
        return shifted_prelu(x, self.shift, self.slope, self.out_shift, self.channel_dim)

    def extra_repr(self) -> str:
        return f"{self.channels}, out_shift={self.out_shift is not None}"
