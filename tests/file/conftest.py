"""Small networks that hold every kind of layer and of sharing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Made = tuple[nn.Module, Tensor]


class EncoderDecoder(nn.Module):
    """Strides, groups, depthwise, dilation, transposed; functional ReLUs and additions."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.down = nn.Conv2d(12, 18, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(18)
        self.grouped = nn.Conv2d(18, 18, 3, padding=2, dilation=2, groups=3)
        self.depthwise = nn.Conv2d(18, 18, 5, padding=2, groups=18)
        self.up = nn.ConvTranspose2d(18, 10, 4, stride=2, padding=1, groups=2)
        self.join = nn.Conv2d(22, 7, 1)
        self.head = nn.Conv2d(7, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.stem(x))
        x = F.relu(self.norm(self.down(first)))
        x = x + F.relu(self.depthwise(F.relu(self.grouped(x))))
        x = F.relu(self.up(x))
        x = F.relu(self.join(torch.cat([x, first], 1)))
        return self.head(x)


class ChannelsLast(nn.Module):
    """Per-pixel linear layers, names like those of bits, a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.expand = nn.Linear(8, 32)
        self.act = nn.GELU()
        self.reduce = nn.Linear(32, 8)
        self.gamma = nn.ParameterDict({"scale": torch.full((8,), 0.5), "bits": torch.ones(8)})
        self.head = nn.Conv2d(8, 2, 1)
        self.register_buffer("offset", torch.tensor([0.25]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.reduce(self.act(self.expand(self.norm(x.permute(0, 2, 3, 1)))))
        y = self.gamma["scale"] * y + self.gamma["bits"] + self.offset
        return self.head(x + y.permute(0, 3, 1, 2))


class Shared(nn.Module):
    """One convolution under two names, called three times, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.again = self.body[0]
        self.left = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.right = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.right.weight = self.left.weight
        self.kept = nn.Conv2d(6, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)
        self.head.bias = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.body(self.stem(x)))
        return self.head(self.kept(torch.relu(self.right(torch.relu(self.left(x))))))


class OptionalSkip(nn.Module):
    """A block whose branch depends on an argument, called both with and without it."""

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

        def forward(self, x: Tensor, skip: Tensor | None = None, double: bool = False) -> Tensor:
            if skip is not None:
                x = torch.cat([x, skip], 1)
            if double:
                x = 2 * x
            return F.relu(self.conv(x))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one = self.Block(4, 5)
        self.two = self.Block(9, 6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        x = self.one(first, double=True)
        return self.head(self.two(x, first))


def _line() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 9, 5, padding=2),
        nn.ReLU(),
        nn.Conv1d(9, 9, 3, stride=2),
        nn.ReLU(),
        nn.ConvTranspose1d(9, 5, 2, stride=2),
        nn.ReLU(),
        nn.Conv1d(5, 1, 1),
    )


def _volume() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv3d(4, 5, 3, padding=1),
        nn.BatchNorm3d(5),
        nn.ReLU(),
        nn.Conv3d(5, 2, 1),
    )


_MAKERS: dict[str, Callable[[], Made]] = {
    "encoder-decoder": lambda: (EncoderDecoder(), torch.randn(2, 3, 20, 28)),
    "channels-last": lambda: (ChannelsLast(), torch.randn(2, 3, 16, 24)),
    "shared": lambda: (Shared(), torch.randn(2, 3, 9, 11)),
    "optional-skip": lambda: (OptionalSkip(), torch.randn(2, 3, 8, 12)),
    "1d": lambda: (_line(), torch.randn(2, 2, 33)),
    "3d": lambda: (_volume(), torch.randn(1, 1, 6, 7, 8)),
}


@pytest.fixture(params=_MAKERS)
def made(request: pytest.FixtureRequest) -> Made:
    """A float network and an input."""
    return _MAKERS[request.param]()


@pytest.fixture
def make() -> Callable[[str], Made]:
    """Make a network by name."""
    return lambda name: _MAKERS[name]()


@pytest.fixture
def trained() -> Callable[[nn.Module], nn.Module]:
    """Give a network the values that training might: also zeros of both signs, in eval mode."""

    def scramble(network: nn.Module) -> nn.Module:
        values: dict[str, Any] = network.state_dict()
        for name, tensor in values.items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0)
            elif name.endswith("num_batches_tracked"):
                tensor.add_(7)
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor, dtype=torch.float32).to(tensor.dtype))
                if tensor.dim() > 1:
                    tensor.view(-1)[:3] = torch.tensor([0.0, -0.0, -1e-30])
        return network.eval()

    return scramble
