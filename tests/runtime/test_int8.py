"""8-bit layers in ONNX Runtime: sums of integers, as in the packed network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

import binarize
from binarize.runtime import Session


def exported(
    network: nn.Module, x: Tensor, path: Path, runtime: str = "binarize", **options: Any
) -> tuple[Any, Session]:
    """The packed network, and a session of its file."""
    torch.manual_seed(0)
    student = binarize.convert(network, example_inputs=x, **options)
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
        for _ in range(2):
            student(x + 0.1 * torch.randn_like(x))
    packed = binarize.pack(student.eval())
    binarize.export_onnx(packed, path, x, runtime=runtime)
    return packed, Session(path)


def assert_same(found: Any, wanted: Tensor) -> None:
    """Bit by bit where oneDNN is known to scale sums as ONNX Runtime does."""
    other = torch.from_numpy(found)
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        assert torch.equal(other, wanted)
    assert other.shape == wanted.shape
    close = torch.isclose(other, wanted, rtol=1e-5, atol=1e-6)
    assert close.float().mean() > 0.99


class Branches(nn.Module):
    """Layers that read one image; each result is an output."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [branch(x) for branch in self.branches]


class Tokens(nn.Module):
    """A linear layer on channels that come last."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.movedim(1, -1)).movedim(-1, 1)


def planar() -> nn.Module:
    return Branches(
        nn.Sequential(nn.Conv2d(6, 64, 5, 2, 2, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        nn.Sequential(nn.Conv2d(6, 12, 3, padding=1, groups=6), nn.ReLU6()),
        nn.Sequential(nn.Conv2d(6, 6, (3, 1), dilation=2), nn.BatchNorm2d(6, affine=False)),
        Conv2dSame(6, 8, 4, stride=2),
        nn.Sequential(nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(4)),
        Tokens(),
    )


KINDS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "2-D": (planar, [(2, 6, 9, 12), (1, 6, 16, 8), (3, 6, 7, 5)]),
    "3-D": (
        lambda: nn.Sequential(nn.Conv3d(2, 9, 3, padding=1), nn.BatchNorm3d(9), nn.ReLU()),
        [(2, 2, 6, 5, 4), (1, 2, 4, 4, 7)],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_equal_bit_by_bit(kind: str, tmp_path: Path) -> None:
    make, shapes = KINDS[kind]
    given = torch.randn(shapes[0])
    packed, session = exported(make(), given, tmp_path / "net.onnx", overrides={"*": "int8"})
    for shape in shapes:
        x = torch.randn(shape)
        wanted, found = packed(x), session(x.numpy())
        if isinstance(wanted, Tensor):
            wanted, found = [wanted], [found]
        for one, other in zip(wanted, found, strict=True):
            assert_same(other, one)


class Mixed(nn.Module):
    """8-bit layers in front of, between and behind 1-bit layers; the first and last are pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.next = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 16, 1)
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16))
        self.narrow = nn.Conv2d(16, 8, 1)
        self.join, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.next(F.relu6(self.stem(x))).relu()
        x = x + self.narrow(self.deep(self.wide(x).relu()).relu())
        return self.head(self.join(x).relu())


OVERRIDES = {
    **dict.fromkeys(("stem.0", "next", "deep.0", "join", "head"), "int8"),
    **dict.fromkeys(("wide", "narrow"), "binarize"),
}


def test_signs_behind_eight_bits(tmp_path: Path) -> None:
    x, path = torch.randn(2, 3, 16, 24), tmp_path / "net.onnx"
    packed, session = exported(Mixed(), x, path, overrides=OVERRIDES)
    graph = onnx.load(path).graph
    made = {tensor.name: tensor for tensor in graph.initializer}
    codes = [t for t in made.values() if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert sorted(list(t.dims) for t in codes) == [
        *([3, 8, 1, 1], [8, 1, 3, 3], [8, 3, 3, 3], [8, 8, 3, 3], [16, 1, 3, 3]),
    ]
    kinds = [node.op_type for node in graph.node]
    # At the end, what is read as codes stays in the pattern that runtimes compute in integers.
    assert kinds.count("BatchNormalization") == 4
    for size in ((16, 24), (9, 14), (32, 32)):
        x = torch.randn(2, 3, *size)
        assert torch.allclose(torch.from_numpy(session(x.numpy())), packed(x), atol=0.05)
    # Without the pair at the end nothing is rounded otherwise.
    network = Mixed()
    network.join = nn.Identity()
    without = {name: how for name, how in OVERRIDES.items() if name != "join"}
    packed, session = exported(network, x, path, overrides=without)
    for size in ((16, 24), (9, 14), (64, 64)):
        x = torch.randn(2, 3, *size)
        assert_same(session(x.numpy()), packed(x))


def test_sums_beyond_single_precision_keep_the_pattern(tmp_path: Path) -> None:
    """Two to the 24th: floats no longer hold each integer."""
    network = nn.Sequential(nn.Conv2d(1600, 2, 1, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(1.0)
    x, path = torch.rand(1, 1600, 3, 3), tmp_path / "net.onnx"
    packed, session = exported(network, x, path, overrides={"*": "int8"})
    assert "BatchNormalization" not in {n.op_type for n in onnx.load(path).graph.node}
    torch.testing.assert_close(torch.from_numpy(session(x.numpy())), packed(x), rtol=1e-5, atol=0.1)


def test_standard_operators_scale_any_transposed_layer(tmp_path: Path) -> None:
    x, path = torch.randn(2, 6, 5, 4), tmp_path / "net.onnx"
    network = Branches(
        nn.ConvTranspose2d(6, 4, 3, 2, groups=2), nn.ConvTranspose2d(6, 5, 2, bias=False)
    )
    with torch.no_grad():  # channels of very different scales
        network.branches[0].weight.mul_(torch.tensor([1.0, 9.0]).view(1, 2, 1, 1))
        network.branches[0].weight[3:].mul_(4)
    packed, session = exported(network, x, path, runtime="standard", overrides={"*": "int8"})
    for one, other in zip(packed(x), session(x.numpy()), strict=True):
        torch.testing.assert_close(torch.from_numpy(other), one, rtol=1e-3, atol=1e-3)


def test_standard_operators_keep_the_pattern(tmp_path: Path) -> None:
    x, path = torch.randn(1, 3, 5, 4), tmp_path / "net.onnx"
    network = nn.Sequential(nn.Conv2d(3, 2, 1))
    exported(network, x, path, runtime="standard", overrides={"*": "int8"})
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("DequantizeLinear") == 2
    assert "BatchNormalization" not in kinds
