"""Layers that make coordinates, and layers that start at zero, stay in float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, deform_conv2d

import binarize

Sample = Callable[[Any, Tensor, Tensor], Tensor]


def base_grid(like: Tensor) -> Tensor:
    rows, columns = (torch.linspace(-1, 1, n) for n in like.shape[2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1)[None]


# How the result of an 18-channel convolution is used together with its input feature map.
WAYS: dict[str, Sample] = {
    "deformable": lambda m, a, y: m.dcn(a, y),
    "tanh": lambda m, a, y: m.dcn(a, 4 * y.tanh()),
    "flow added": lambda m, a, y: m.dcn(a, y + y.flip(1)),
    "masked": lambda m, a, y: m.dcn(a, torch.zeros_like(y), y[:, :9].sigmoid()),
    "function": lambda m, a, y: deform_conv2d(a, y, m.dcn.weight, padding=1, mask=None),
    "grid": lambda _m, a, y: F.grid_sample(
        a, base_grid(a) + y[:, :2].permute(0, 2, 3, 1), align_corners=True
    ),
    "grid alone": lambda _m, a, y: F.grid_sample(
        a, torch.stack([y[:, 0], y[:, 1]], -1).tanh(), align_corners=False
    ),
    "a table of its own": lambda m, a, y: F.grid_sample(
        m.table.expand(len(a), -1, -1, -1), y[:, :2].movedim(1, -1).tanh(), align_corners=True
    ),
    "resized flow": lambda _m, a, y: F.grid_sample(
        a,
        base_grid(a) + F.interpolate(F.avg_pool2d(y[:, :2], 2), size=a.shape[2:]).movedim(1, -1),
        align_corners=True,
    ),
    "features": lambda _m, a, y: a + torch.cat([y[:, 2:]], 1),
}


class Sampling(nn.Module):
    def __init__(self, way: str, zero: bool = False) -> None:
        super().__init__()
        self.way = way
        self.table = nn.Parameter(torch.randn(1, 16, 8, 8))
        self.stem, self.a = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.offset, self.dcn = nn.Conv2d(16, 18, 3, padding=1), DeformConv2d(16, 16, 3, padding=1)
        self.c, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 2, 1)
        if zero:
            nn.init.zeros_(self.offset.weight)
            nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(F.relu(self.stem(x))))
        return self.head(F.relu(self.c(F.relu(WAYS[self.way](self, a, self.offset(a))))))


@pytest.mark.parametrize("policy", ["bidense", "bidense-released", "bireal"])
@pytest.mark.parametrize("way", WAYS)
def test_what_makes_coordinates_stays(way: str, policy: str) -> None:
    plan = binarize.plan(Sampling(way), policy, example_inputs=torch.zeros(1, 3, 16, 16))
    layers = {d.site: d for d in plan.layers}
    offset = layers["offset"]
    if way == "features":
        assert offset.action == "binarize"
        assert "coordinates" not in offset.roles
    else:
        assert offset.action == "keep"
        assert "coordinates" in offset.roles
        assert "coordinates" in offset.reason
    # The sampled feature maps are features.
    assert {layers[site].action for site in ("a", "c")} == {"binarize"}


def test_offsets_start_at_zero() -> None:
    student = binarize.convert(Sampling("features", zero=True)).eval()
    offset = {d.site: d for d in student.binarize_plan.layers}["offset"]
    assert offset.action == "keep"
    assert offset.roles == ("zero",)
    found: list[Tensor] = []
    student.offset.register_forward_hook(lambda _m, _a, y: found.append(y))
    student(torch.randn(1, 3, 16, 16))
    assert found[0].abs().max() == 0


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_layer_with_one_value_is_not_zero(part: str) -> None:
    model = Sampling("features", zero=True)
    with torch.no_grad():
        getattr(model.offset, part).flatten()[-1] = 1e-8
    assert "zero" not in {d.site: d for d in binarize.plan(model).layers}["offset"].roles


def test_zeros_alone_tell_nothing() -> None:
    model = Sampling("features")
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert not any("zero" in d.roles for d in binarize.plan(model).layers)
