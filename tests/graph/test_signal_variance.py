"""No doubling: after n binary layers the signal is at most 3 * sqrt(n) wide."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.nn import BinaryLayer

NETWORKS = [
    "timm/resnet18",
    "timm/resnet34",
    "timm/resnet50",
    "timm/resnet101",
    "timm/resnet152",
    "timm/convnext_tiny",
    "timm/mobilenetv2_100",
    "timm/efficientnet_b0",
    "timm/regnety_008",
    "timm/densenet121",
    "smp/Unet/resnet34",
    "smp/Unet/efficientnet-b0",
    "smp/UnetPlusPlus/resnet18",
    "smp/FPN/resnet18",
    "smp/Linknet/resnet18",
]


def prepare(model: nn.Module) -> nn.Module:
    """Random norms and layer scales of order one: zeros would hide a branch that doubles."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.7, 1.3)
        for key, parameter in module.named_parameters(recurse=False):
            if key in ("gamma", "layer_scale") and parameter.dim() == 1:
                nn.init.uniform_(parameter, 0.7, 1.3)
    return model


def widths(student: nn.Module, x: Tensor) -> list[tuple[str, float]]:
    """Standard deviation after every binary layer, in order of execution."""
    found: list[tuple[str, float]] = []

    def note(name: str):
        return lambda _module, _args, out: found.append((name, out.std().item()))

    handles = [
        module.register_forward_hook(note(name))
        for name, module in student.named_modules()
        if isinstance(module, BinaryLayer)
    ]
    with torch.no_grad():
        student(x)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_width_after_n_binary_layers(name: str, lab: SimpleNamespace) -> None:
    model = prepare(lab.build(name))
    x = torch.randn(4, 3, 64, 64)
    student = binarize.convert(model, example_inputs=x[:1]).train()
    found = widths(student, x)
    # Layers run one after the other, so the n-th to run has at most n on its path. Norms of
    # weight 0.7 to 1.3 widen a step by 2 percent at most.
    too_wide = {
        site: (n, width)
        for n, (site, width) in enumerate(found, start=1)
        if not width <= 3 * math.sqrt(n)
    }
    assert not too_wide
    # Nor does the signal fade: the last feature maps are still of order one.
    assert found[-1][1] > 0.1


def test_width_in_evaluation_mode_after_recalibration(lab: SimpleNamespace) -> None:
    model = prepare(lab.build("timm/resnet50"))
    x = torch.randn(8, 3, 64, 64)
    student = binarize.convert(model, example_inputs=x[:1])
    binarize.recalibrate(student, [x, x])
    found = widths(student.eval(), x)
    assert all(width <= 3 * math.sqrt(n) for n, (_, width) in enumerate(found, start=1))


def test_the_float_block_addition_alone_would_double(lab: SimpleNamespace) -> None:
    """The measurement sees what it is there to see: ResNet-34 with both paths grows as 2^depth."""
    student = binarize.convert(
        prepare(lab.build("timm/resnet34")), example_inputs=torch.zeros(1, 3, 64, 64)
    ).train()
    for module in student.modules():
        if isinstance(module, BinaryLayer) and module.stride == (1, 1):
            module.register_forward_hook(lambda _m, args, out: out + args[0][:, : out.shape[1]])
    found = widths(student, torch.randn(4, 3, 64, 64))
    assert any(width > 3 * math.sqrt(n) for n, (_, width) in enumerate(found, start=1))


class Stacked(nn.Module):
    """A residual block that adds by a sum over what it stacks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x, self.norm(self.conv(x))]).sum(0)


def test_a_sum_over_a_stack_is_an_addition() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *(Stacked() for _ in range(16)), nn.Conv2d(8, 2, 1)
    )
    x = torch.randn(2, 3, 16, 16)
    student = binarize.convert(model, example_inputs=x).train()
    found = widths(student, x)
    assert len(found) == 16
    for n, (name, width) in enumerate(found, start=1):
        assert width <= 3 * math.sqrt(n), (name, n, width)


class Gated(nn.Module):
    """Two towers of gated blocks, whose additions stay, each followed by a layer."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(blocks)) for _ in range(2)
        )
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.ends = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x, made = self.stem(x), []
        for tower, end in zip(self.towers, self.ends, strict=True):
            y = x
            for layer in tower:
                y = y + layer(y) * y.mean((2, 3), keepdim=True).sigmoid()
            made.append(end(y))
        return self.head(made[0] + made[1])


def test_a_bypass_stays_where_the_sum_is_small_enough() -> None:
    """After n blocks either tower is about sqrt(n) wide, and so 2 * sqrt(n) is their sum."""
    plan = binarize.plan(Gated(8), example_inputs=torch.zeros(1, 3, 16, 16))
    carries = {d.site: d.carries for d in plan.layers if d.action == "binarize"}
    assert len(carries) == 18
    assert {site for site, carried in carries.items() if carried} == {"ends.0", "ends.1"}
