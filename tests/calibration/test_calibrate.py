"""Calibration: exact where it can be, never worse on a small network, and harmless when it fails."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import BinarizeError, DataError, ModelError
from binarize.policy.loader import from_dict

PLAIN = from_dict(
    {
        "name": "plain",
        "summary": "signs only",
        "source": "this test",
        "unit": {
            "binarizer": "sign",
            "weight": "scaled-sign",
            "bypass": "none",
            "activation": "none",
        },
        "rules": [
            {"match": {"role": "input"}, "action": "keep", "reason": "input"},
            {"match": {"role": "prediction"}, "action": "keep", "reason": "output"},
            {"action": "binarize", "reason": "rest"},
        ],
    }
)


class Signs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def binary_teacher(layer: Any, channels: int = 6) -> nn.Sequential:
    """A network whose middle layer is binary in all but its class."""
    torch.manual_seed(3)
    middle = layer(channels)
    with torch.no_grad():
        middle.weight.copy_(torch.where(middle.weight < 0, -0.2, 0.2))
    norm = nn.BatchNorm2d(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    head = nn.Conv2d(channels, 3, 1)
    network = nn.Sequential(nn.Conv2d(3, channels, 3), Signs(), middle, norm, nn.ReLU(), head)
    return network.double().eval()


def images(*sizes: int, side: int = 12, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, 3, side, side, generator=generator, dtype=torch.float64) for n in sizes
    ]


LAYERS = {
    "plain": lambda c: nn.Conv2d(c, c, 3, padding=1, bias=False),
    "bias": lambda c: nn.Conv2d(c, c, 3, stride=2),
    "groups": lambda c: nn.Conv2d(c, c, 3, groups=2, bias=False),
    "depthwise": lambda c: nn.Conv2d(c, c, 3, groups=c, bias=False),
    "transposed": lambda c: nn.ConvTranspose2d(c, c, 3, stride=2, padding=1, groups=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_is_binary_already_is_found_again(name: str) -> None:
    teacher = binary_teacher(LAYERS[name])
    student = binarize.convert(teacher, PLAIN, example_inputs=images(1)[0])
    unit: Any = student[2]
    with torch.no_grad():
        flipped = torch.rand_like(unit.weight) < 0.1
        unit.weight[flipped] *= -1
        nn.init.normal_(unit.norm.weight)
        nn.init.normal_(unit.norm.bias)
    batches = images(2, 3)
    assert binarize.calibrate(student, teacher, batches) is student
    for x in images(2, seed=9):
        assert torch.allclose(student(x), teacher(x), atol=1e-6)
    assert torch.equal(unit.weight.sign(), teacher[2].weight.sign())
    assert torch.allclose(unit.weight.abs().mean(), teacher[2].weight.abs().mean())


def test_without_weights_only_norms_and_slopes_change() -> None:
    teacher = binary_teacher(LAYERS["plain"])
    student = binarize.convert(teacher, PLAIN, example_inputs=images(1)[0])
    nn.init.normal_(student[2].weight)
    before = student[2].weight.clone()
    binarize.calibrate(student, teacher, images(2, 3), weights=False)
    assert torch.equal(student[2].weight, before)
    sums: list[Tensor] = []
    student[2].norm.register_forward_pre_hook(lambda module, args: sums.append(args[0]))
    for x in images(2, 3):
        student(x)
    pooled = torch.cat([s.transpose(0, 1).flatten(1) for s in sums], 1)
    assert torch.allclose(student[2].norm.running_mean, pooled.mean(1))
    assert torch.allclose(student[2].norm.running_var, pooled.var(1))


# Real networks


def trained() -> tuple[nn.Module, list[Tensor]]:
    """A small U-Net after a few steps on the procedural scenes."""
    from binarize.cli.networks import Recipe, build
    from binarize.data import open_dataset

    torch.manual_seed(0)
    network = build(Recipe("demo:UNet", 6, arguments={"widths": [8, 16]}))
    data = open_dataset("scenes", None, split="train", size=(32, 32), task="segmentation")
    samples = [data[i] for i in range(24)]
    x = torch.stack([sample["image"] for sample in samples])
    y = torch.stack([sample["mask"] for sample in samples])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(40):
        part = slice(8 * (step % 3), 8 * (step % 3) + 8)
        loss = nn.functional.cross_entropy(network(x[part]), y[part], ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval(), list(x.split(8))


@pytest.fixture(scope="module")
def unet() -> tuple[nn.Module, list[Tensor]]:
    return trained()


@torch.no_grad()
def agreement(student: nn.Module, teacher: nn.Module, batches: list[Tensor]) -> float:
    student.eval()
    same = [student(x).argmax(1) == teacher(x).argmax(1) for x in batches]
    return float(torch.cat(same).double().mean())


@pytest.mark.parametrize("policy", ["bidense", "adabin", "irnet", "bisrnet", "deploy", "xnor"])
def test_agreement_rises_with_every_step(unet: Any, policy: str) -> None:
    teacher, batches = unet
    converted = binarize.convert(teacher, policy, example_inputs=batches[0][:1])
    found = [agreement(binarize.recalibrate(copy.deepcopy(converted), batches), teacher, batches)]
    for options in ({"weights": False, "activations": False}, {"weights": False}, {}):
        student = copy.deepcopy(converted)
        binarize.calibrate(student, teacher, batches, **options)
        found.append(agreement(student, teacher, batches))
    assert found[-1] > max(found[0], found[1]) + 0.02, found
    assert found[1] > found[0] - 0.02, found
    assert found[2] > found[1] - 0.02, found


def test_several_latent_weights_stay(unet: Any) -> None:
    teacher, batches = unet
    for policy in ("groupnet", "cbnn", "lqnet"):
        student = binarize.convert(teacher, policy, example_inputs=batches[0][:1])
        before = {k: v.clone() for k, v in student.named_parameters() if "norm" not in k}
        start = agreement(binarize.recalibrate(copy.deepcopy(student), batches), teacher, batches)
        binarize.calibrate(student, teacher, batches, activations=False)
        for name, value in student.named_parameters():
            if name in before and not any(d.norm and name.startswith(d.norm) for d in
                                          student.binarize_plan.layers):  # fmt: skip
                assert torch.equal(value, before[name]) or ".1." in name or "bn" in name, name
        assert agreement(student, teacher, batches) > start
