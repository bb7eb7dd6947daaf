"""Networks to pack, with the values that a training leaves."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.nn import BinaryLayer, ShiftedPReLU


class Block(nn.Module):
    """conv - norm - act - conv - norm, plus the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        y += x
        return self.act(y)


class UNet(nn.Module):
    """Stem, a block at half the size, a decoder that concatenates, a head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.block = Block(2 * width)
        self.up = nn.Conv2d(3 * width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm(self.stem(x)))
        deep = self.block(F.relu(self.down(first)))
        deep = F.interpolate(deep, size=first.shape[2:], mode="nearest")
        return self.head(F.relu(self.up(torch.cat([deep, first], 1))))


def train_like(network: nn.Module) -> nn.Module:
    """Put numbers into everything that starts at 0 or 1; in eval mode."""
    with torch.no_grad():
        for module in network.modules():
            part: Any = module
            if isinstance(module, BinaryLayer):
                for value in (part.binarizer.b, part.binarizer.a):
                    value.uniform_(-0.3, 0.3)
                part.binarizer.k.uniform_(0.5, 1.5)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                part.running_mean.normal_(std=0.3)
                part.running_var.uniform_(0.5, 2)
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(std=0.3)
            if isinstance(module, ShiftedPReLU):
                for value in module.parameters():
                    value.uniform_(-0.3, 0.3)
    return network.eval()


def student(network: nn.Module, policy: str = "bidense", **options: Any) -> nn.Module:
    return train_like(binarize.convert(network, policy, **options))


def calls(packed: Any) -> list[dict[str, Any]]:
    """The kernel's calls in the only program of a packed network, arguments by name."""
    from binarize.lower.units import arguments, units

    (program,) = packed._programs.values()
    return [arguments(node) for node in units(program.module.graph)]


def operators(packed: Any) -> list[str]:
    """What else the program calls."""
    (program,) = packed._programs.values()
    names = [
        getattr(node.target, "__name__", str(node.target)).split(".")[0]
        for node in program.module.graph.nodes
        if node.op == "call_function"
    ]
    return [name for name in names if name not in ("getitem", "run_unit")]


@pytest.fixture(scope="session")
def shop() -> SimpleNamespace:
    """The helpers of this file, for the tests in this folder."""
    return SimpleNamespace(
        Block=Block,
        UNet=UNet,
        train_like=train_like,
        student=student,
        calls=calls,
        operators=operators,
    )


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small feature maps gain nothing from threads, and the tests share their machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
