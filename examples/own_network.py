"""Convert your own network: an encoder-decoder with functional ReLUs and additions.

The network does not import ``binarize``. The conversion finds the calls inside the forward
functions: it replaces the ReLUs, removes the additions of the blocks, because every binary
layer has its own bypass, and leaves the additions between encoder and decoder.

    python examples/own_network.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize


class Block(nn.Module):
    """Residual block; its shortcut is projected where channels or resolution change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.project = stride != 1 or in_channels != out_channels
        if self.project:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to ``out_channels`` channels."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + (self.shortcut(x) if self.project else x))


class EncoderDecoder(nn.Module):
    """Images (N, 3, H, W) to one value per pixel, (N, 1, H, W); H and W divisible by 8."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 2, 1)
        self.down = nn.ModuleList([Block(16, 32, stride=2), Block(32, 64, stride=2)])
        self.up = nn.ModuleList(
            [nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ConvTranspose2d(32, 16, 4, 2, 1)]
        )
        self.head = nn.Conv2d(widths[0], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Predict."""
        x = F.relu(self.stem(x))
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(x)
        for grow in self.up:
            x = F.relu(grow(x) + skips.pop())
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(x)


def main() -> None:
    """Plan, convert, save, load."""
    torch.manual_seed(0)
    network = EncoderDecoder()
    image = torch.randn(2, 3, 64, 96)
    print(binarize.plan(network, example_inputs=image))

    student = binarize.convert(network, example_inputs=image)
    binarize.recalibrate(student, [image])
    student(image).mean().backward()  # an ordinary module: train it like any other

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.safetensors"
        binarize.save(student, path)
        again = binarize.load(path, model=EncoderDecoder())  # the file contains no code
        print(f"{path.stat().st_size:,} bytes")
    with torch.no_grad():
        print("same outputs:", torch.equal(again(image), student.eval()(image)))


if __name__ == "__main__":
    main()
