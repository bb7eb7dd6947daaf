"""Channels that are constant over the positions: their signs are +1, wherever they are taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.kernels import native
from binarize.nn import BiConv2d
from binarize.nn.activation_binarizers.ablated import AblatedBinarizer
from binarize.nn.activation_binarizers.distribution_adaptive import DistributionAdaptiveBinarizer

SIZE = (33, 41)
SPREAD: dict[str, Callable[[Tensor], Tensor]] = {
    "expand": lambda g: g.expand(-1, -1, *SIZE),
    "bilinear": lambda g: F.interpolate(g, SIZE, mode="bilinear", align_corners=False),
    "bicubic": lambda g: F.interpolate(g, SIZE, mode="bicubic", align_corners=False),
    "product": lambda g: g * torch.ones(SIZE, dtype=g.dtype),
    "noise": lambda g: g * (1 + torch.finfo(g.dtype).eps * torch.randn(SIZE, dtype=g.dtype)),
}


def constants(samples: int, channels: int) -> Tensor:
    scale = 10.0 ** torch.randint(-6, 6, (samples, channels, 1, 1))
    return (
        torch.randn(samples, channels, 1, 1) * scale * (torch.rand(samples, channels, 1, 1) > 0.1)
    )


@pytest.mark.parametrize("spread", SPREAD)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_their_signs_are_plus_one(spread: str, training: bool, dtype: torch.dtype) -> None:
    x = SPREAD[spread](constants(2, 50).to(dtype))
    for binarizer in (
        DistributionAdaptiveBinarizer(50),
        DistributionAdaptiveBinarizer(50, scale="channel"),
        AblatedBinarizer(50, threshold="mean"),
        AblatedBinarizer(50, threshold="affine"),
    ):
        assert (binarizer.to(dtype).train(training)(x) > 0).all()


@pytest.mark.parametrize("spread", SPREAD)
def test_the_kernels_agree(spread: str) -> None:
    layer = BiConv2d(50, 20, 3, padding=1, bypass=False).eval()
    x = SPREAD[spread](constants(2, 50)).contiguous()
    packed = binarize.pack(nn.Sequential(layer).eval()).network[0]
    with torch.no_grad():
        expected = layer(x)
        for name in [*native.status().usable, "reference"]:
            packed.kernel = native.select(name)
            torch.testing.assert_close(packed(x), expected, msg=name)


class Pooled(nn.Module):
    """A pooled branch next to the feature map, as in ASPP and pyramid pooling."""

    def __init__(self, spread: str) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.ReLU())
        self.project, self.head = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 2, 1)
        self.spread = SPREAD[spread]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(F.relu(self.stem(x))))
        return self.head(F.relu(self.project(torch.cat([x, self.spread(self.pool(x))], 1))))


@pytest.mark.parametrize("spread", ["expand", "bilinear", "bicubic", "product"])
def test_batches_precisions_and_packed_networks_agree(spread: str) -> None:
    x = torch.randn(4, 3, *SIZE)
    model = binarize.convert(Pooled(spread), example_inputs=x).eval()
    packed = binarize.pack(model)
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(packed(x), y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(x[:1]), y[:1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.double()(x.double()).float(), y, rtol=1e-4, atol=1e-4)
