"""Binarize the network of the BiDense paper, ConvNeXt-Tiny with BatchNorm under UPerNet.

It is an ordinary float network, independent of ``binarize``. One call converts it to what the
authors wrote by hand: no block additions, and a bypass around every convolution but the first and
the last.

    python examples/paper_network.py
    python examples/paper_network.py --task depth --size 416 544
    python examples/paper_network.py --policy reactnet

``python tools/tables.py`` counts it by every method of the paper's tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize

Norm = nn.BatchNorm2d


class Block(nn.Module):
    """ConvNeXt block with BatchNorm: (N, C, H, W) to the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm1 = Norm(channels)
        self.expand = nn.Conv2d(channels, 4 * channels, 1)
        self.norm2 = Norm(4 * channels)
        self.act = nn.GELU()
        self.reduce = nn.Conv2d(4 * channels, channels, 1)
        self.norm3 = Norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add two branches to the features, the second reading the result of the first."""
        y = x + self.norm1(self.depthwise(x))
        y = self.act(self.norm2(self.expand(y)))
        return x + self.norm3(self.reduce(y))


class Encoder(nn.Module):
    """Four stages, at strides 4, 8, 16 and 32 of the image (N, 3, H, W)."""

    def __init__(self, dims: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.downs = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(3, dims[0], 4, stride=4), Norm(dims[0]))]
        )
        for before, after in pairwise(dims):
            self.downs.append(nn.Sequential(nn.Conv2d(before, after, 2, stride=2), Norm(after)))
        self.stages = nn.ModuleList(
            [
                nn.Sequential(*(Block(channels) for _ in range(depth)))
                for channels, depth in zip(dims, depths, strict=True)
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the stages' feature maps, the finest first."""
        maps = []
        for down, stage in zip(self.downs, self.stages, strict=True):
            x = stage(down(x))
            maps.append(x)
        return maps


def conv_norm_act(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    """Build a size-preserving convolution without bias, norm, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, Norm(out_channels), nn.ReLU(inplace=True))


class PyramidPooling(nn.Module):
    """Context of the last feature map (N, C, H, W) at four scales; same shape."""

    def __init__(self, channels: int, scales: Sequence[int] = (1, 2, 4, 6)) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            [
                nn.Sequential(nn.AdaptiveAvgPool2d(s), conv_norm_act(channels, channels // 4, 1))
                for s in scales
            ]
        )
        self.fuse = conv_norm_act(channels + len(scales) * (channels // 4), channels, 3)
        self.drop = nn.Dropout2d(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Pool, project, resize back, concatenate, fuse."""
        size = x.shape[2:]
        pooled = [
            F.interpolate(pool(x), size=size, mode="bilinear", align_corners=True)
            for pool in self.pools
        ]
        return self.drop(self.fuse(torch.cat([x, *pooled], 1)))


class Smooth(nn.Module):
    """Add a 3x3 convolution of the feature map (N, C, H, W) to it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = Norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map of the same shape."""
        return x + self.norm(self.conv(x))


class FeaturePyramid(nn.Module):
    """Fuse the stages' feature maps to one (N, dims[0], H, W) at stride 4."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        width = dims[0]
        self.laterals = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(channels, width, 1), Norm(width)) for channels in dims[1:]]
        )
        self.smooth = Smooth(width)  # shared by all merged feature maps
        self.fuse = conv_norm_act(len(dims) * width, width, 3)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Merge each feature map with the next coarser one, smooth, concatenate, fuse."""
        first, *rest = maps
        levels = [first] + [lateral(x) for lateral, x in zip(self.laterals, rest, strict=True)]
        merged = []
        for fine, coarse in pairwise(levels):
            up = F.interpolate(coarse, size=fine.shape[2:], mode="bilinear", align_corners=True)
            merged.append(self.smooth(up + fine))
        size = first.shape[2:]
        resized = [
            F.interpolate(x, size=size, mode="bilinear", align_corners=True)
            for x in (*merged[1:], levels[-1])
        ]
        return self.fuse(torch.cat([merged[0], *resized], 1))


class DenseNetwork(nn.Module):
    """Predict a value or a class for every pixel.

    Args:
        classes: Number of classes; 0 predicts depth.
        max_depth: Largest depth, in metres.
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        head: Channels of the head.

    Shapes: (N, 3, H, W) to (N, classes, H, W), or (N, 1, H, W) for depth.
    """

    def __init__(
        self,
        classes: int = 151,
        *,
        max_depth: float = 10.0,
        dims: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (3, 3, 9, 3),
        head: int = 128,
    ) -> None:
        super().__init__()
        self.max_depth = None if classes else max_depth
        self.encoder = Encoder(dims, depths)
        self.context = PyramidPooling(dims[-1])
        self.pyramid = FeaturePyramid(dims)
        self.head = nn.Sequential(nn.Conv2d(dims[0], head, 3, padding=1), Norm(head))
        width = head if classes else head // 4
        self.predict = nn.Sequential(
            conv_norm_act(head, width, 3), nn.Conv2d(width, classes or 1, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Predict class scores, or metres."""
        *fine, last = self.encoder(image)
        x = self.head(self.pyramid([*fine, self.context(last)]))
        x = F.interpolate(x, size=image.shape[2:], mode="bilinear", align_corners=True)
        x = self.predict(x)
        return x if self.max_depth is None else self.max_depth * torch.sigmoid(x)


def main(arguments: Sequence[str] | None = None) -> None:
    """Convert the network and print its report."""
    parser = argparse.ArgumentParser(description="Convert the BiDense paper's network.")
    parser.add_argument("--task", choices=("segmentation", "depth"), default="segmentation")
    parser.add_argument("--classes", type=int, default=151, help="classes of the segmentation")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 480), metavar=("H", "W"))
    parser.add_argument("--policy", default="bidense-released")
    given = parser.parse_args(arguments)
    network = DenseNetwork(0 if given.task == "depth" else given.classes).eval()
    example = torch.zeros(1, 3, *given.size)
    student = binarize.convert(network, given.policy, example_inputs=example)
    print(binarize.report(student, example))


if __name__ == "__main__":
    main()
