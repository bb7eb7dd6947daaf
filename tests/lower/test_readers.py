"""What a program may write over, read in another place, or leave out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize


class TwoReaders(nn.Module):
    """A kept layer whose result an activation reads, and another layer too."""

    def __init__(self, act: Any, norm: bool) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.act, self.head = act, nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x))
        return self.head(self.act(self.body(self.act(y) - 1)) + y.abs())


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.2), nn.ReLU6()])
def test_a_result_with_two_readers_stays(shop: SimpleNamespace, act: Any, norm: bool) -> None:
    agree(shop, TwoReaders(act, norm), torch.randn(1, 3, 9, 11))


class Resized(nn.Module):
    def __init__(self, how: dict[str, Any]) -> None:
        super().__init__()
        self.how = how
        sizes = ((3, 8), (8, 8), (8, 8))
        self.stem, self.a, self.b = (nn.Conv2d(*each, 3, padding=1) for each in sizes)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(F.relu(self.stem(x))))
        return self.head(F.relu(self.b(F.interpolate(y, **self.how))))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize(
    "how",
    [
        {"scale_factor": 3.2},  # from 4 pixels to 12, on a grid of its own
        {"scale_factor": (3.2, 2.0)},
        {"scale_factor": 2.24},
        {"scale_factor": 3.2, "recompute_scale_factor": True},
        {"scale_factor": 3},
        {"size": (12, 12)},
        {"size": (8, 12)},
        {"size": (7, 9)},
    ],
)
def test_upsampling(shop: SimpleNamespace, how: dict[str, Any], mode: str) -> None:
    agree(shop, Resized({**how, "mode": mode}), torch.randn(2, 3, 4, 4))


class Joined(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.stem, self.a = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8))
        self.b = nn.Conv2d(16 if dim in (1, -3) else 8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        return self.head(F.relu(self.b(torch.cat([y, F.relu(self.a(y))], self.dim))))


@pytest.mark.parametrize("dim", [0, 1, 2, 3, -1, -3])
def test_concatenation_along_any_dimension(shop: SimpleNamespace, dim: int) -> None:
    packed = agree(shop, Joined(dim), torch.randn(2, 3, 8, 8))
    (program,) = packed.programs.values()
    joined = [n for n in program.module.graph.nodes if "aten.cat" in str(n.target)]
    # Units read channels from where they are; everything else is put together first.
    assert len(joined) == (dim not in (1, -3))


def agree(shop: SimpleNamespace, network: nn.Module, x: Tensor) -> Any:
    student = shop.train_like(binarize.convert(network.eval(), example_inputs=x)).eval()
    packed = binarize.pack(student)
    with torch.no_grad():
        expected = student(x)
        for _ in range(2):
            torch.testing.assert_close(packed(x), expected, atol=1e-4, rtol=1e-4)
    assert packed.unfused is None
    return packed


class InPlace(nn.Module):
    def __init__(self, norm: nn.Module, how: str) -> None:
        super().__init__()
        self.stem, self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)
        self.norm, self.how = norm, how

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.stem(x))
        if self.how == "silu":
            F.silu(y, inplace=True)
        elif self.how == "add":
            y += 1
            y.mul_(0.5)
        elif self.how == "view":
            y.unsqueeze(1).tanh_()  # y is read below
        elif self.how == "clamp":
            torch.clamp_(y, -1, 1)
        return self.head(F.relu(self.a(y)) + F.pad(y, (-1, -1, -1, -1)))


@pytest.mark.parametrize("how", ["silu", "add", "view", "clamp"])
@pytest.mark.parametrize("kind", ["instance", "affine", "group", "batch", "none"])
def test_changes_in_place_behind_norms(
    shop: SimpleNamespace, kind: str, how: str, tmp_path: Path
) -> None:
    norms = {
        "instance": nn.InstanceNorm2d(8),
        "affine": nn.InstanceNorm2d(8, affine=True, track_running_stats=True),
        "group": nn.GroupNorm(2, 8),
        "batch": nn.BatchNorm2d(8),
        "none": nn.Identity(),
    }
    x = torch.randn(2, 3, 9, 9)
    packed = agree(shop, InPlace(norms[kind], how), x)
    binarize.save(packed, tmp_path / "net")
    torch.testing.assert_close(binarize.load(tmp_path / "net")(x), packed(x))


@pytest.mark.filterwarnings("ignore::binarize.errors.SlowWarning")
@pytest.mark.parametrize("how", ["half", "other half", "bits"])
def test_a_part_that_is_changed_is_no_program(shop: SimpleNamespace, how: str) -> None:
    class Part(InPlace):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            if how == "half":
                y[:, :4].neg_()
            elif how == "other half":
                one, two = y[:1], y[1:]
                del y
                one.neg_()
                y = torch.cat([two, one])
            else:
                y.view(torch.int32).bitwise_and_(2**31 - 1)  # without their signs
            return self.head(F.relu(self.a(y)))

    network = Part(nn.Identity(), "").eval()
    x = torch.randn(2, 3, 9, 9)
    student = shop.train_like(binarize.convert(network, example_inputs=x)).eval()
    packed = binarize.pack(student)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), student(x), atol=1e-4, rtol=1e-4)
    assert "it changes a tensor that is read elsewhere" in packed.unfused
