"""Activations that follow a binary layer, or stand between a norm and a sign.

After a ReLU, a sign at 0 is +1 everywhere, so methods that binarize at a fixed zero use none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.ops.shifted_prelu import shifted_prelu

__all__ = ["HardTanh", "Maxout", "NoActivation", "ShiftedPReLU"]


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


class HardTanh(nn.Hardtanh):
    """``min(max(x, -1), 1)`` between norm and sign, as in BNN, XNOR-Net, DoReFa-Net and IR-Net.

    Args:
        channels: Number of channels; any.
        channel_dim: Where they are; any.
    """

    def __init__(self, channels: int, *, channel_dim: int = 1) -> None:
        super().__init__()


class NoActivation(nn.Identity):
    """No activation: in Bi-Real Net the signs are the only nonlinearity.

    Args:
        channels: Number of channels; any.
        channel_dim: Where they are; any.
    """

    def __init__(self, channels: int, *, channel_dim: int = 1) -> None:
        super().__init__()
