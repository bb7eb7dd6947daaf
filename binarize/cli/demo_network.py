"""The demo's small U-Net, an ordinary float network.

Ronneberger, Fischer, Brox 2015, "U-Net: Convolutional networks for biomedical image segmentation",
with BatchNorm, padded convolutions, and internal half resolution.

Shape legend: N samples, H, W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["UNet"]


class _Block(nn.Module):
    """Two convolutions with norms."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """A U-Net with a few hundred thousand weights.

    Args:
        classes: Number of output channels.
        in_channels: Number of input channels.
        widths: Channels at 1/2, 1/4, ... of the input's resolution.
    """

    def __init__(
        self, classes: int = 6, in_channels: int = 3, widths: Sequence[int] = (16, 32, 64, 96)
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 5, stride=2, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(_Block(above, below) for above, below in pairs)
        self.up = nn.ModuleList(_Block(below + above, above) for above, below in reversed(pairs))
        self.head = nn.Conv2d(widths[0], classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes, H, W) for images (N, in_channels, H, W)."""
        size = x.shape[-2:]
        x = F.relu(self.norm(self.stem(x)))
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(F.max_pool2d(x, 2, ceil_mode=True))
        for block in self.up:
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = block(torch.cat((x, skip), dim=1))
        return F.interpolate(self.head(x), size=size, mode="bilinear", align_corners=False)
