"""Programs of free sizes: one recording serves inputs of every size that meets its conditions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.cli.deployed import ProgramNetwork
from binarize.errors import ModelError
from binarize.lower import program
from binarize.nn import BiConv1d, BiConv2d, BiConv3d, BiConvTranspose2d

# More than are recorded one by one.
SIZES = [(4, 4), (6, 4), (4, 6), (9, 13), (8, 32), (7, 5), (33, 18), (2, 2), (40, 3)]


def packed(network: nn.Module) -> Any:
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    return binarize.pack(network.eval())


def general(network: Any) -> list[Any]:
    return [each for _, each in network.general]


class Net(nn.Module):
    """A stem, units at two resolutions, and a way back up that is a parameter."""

    def __init__(self, up: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.down = BiConv2d(8, 12, 3, stride=2, padding=1)
        self.deep = BiConv2d(12, 12, 3, padding=1)
        self.up = up
        self.out = BiConv2d(20, 5, 3, padding=1)
        self.head = nn.Conv2d(5, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm(self.stem(x)))
        deep = F.relu(self.deep(self.down(first)))
        y = self.out(torch.cat([self.up(deep, first), first], 1))
        return F.interpolate(self.head(F.pad(y, (1, 1, 1, 1))), scale_factor=1.5, mode="bilinear")


def double_and_crop(deep: Tensor, first: Tensor) -> Tensor:
    up = F.interpolate(deep, scale_factor=2)
    return up[:, :, : first.shape[2], : first.shape[3]]


def padded(deep: Tensor, first: Tensor) -> Tensor:
    missing = first.shape[3] - deep.shape[3], first.shape[2] - deep.shape[2]
    return F.pad(deep, (0, missing[0], 0, missing[1]))


UPS = {
    "nearest to the size": lambda d, f: F.interpolate(d, size=f.shape[2:]),
    "nearest-exact": lambda d, f: F.interpolate(d, size=f.shape[2:], mode="nearest-exact"),
    "bilinear": lambda d, f: F.interpolate(d, size=f.shape[2:], mode="bilinear"),
    "bicubic": lambda d, f: F.interpolate(d, f.shape[2:], mode="bicubic", align_corners=True),
    "area": lambda d, f: F.interpolate(d, size=f.shape[-2:], mode="area"),
    "twice, cropped": double_and_crop,
    "padded": padded,
    "pooled": lambda d, f: F.adaptive_avg_pool2d(d, 1).expand(-1, -1, *f.shape[2:]),
    "repeated": lambda d, f: d.mean((2, 3), keepdim=True).repeat(1, 1, f.shape[2], f.shape[3]),
    "gate": lambda d, f: F.interpolate(d, f.shape[2:]) * torch.sigmoid(f.mean((2, 3), True).mean()),
    "by tokens": lambda d, f: F.interpolate(
        d.flatten(2).transpose(1, 2).transpose(1, 2).reshape(d.shape), size=f.shape[2:]
    ),
    "a grid of its size": lambda d, f: (
        F.interpolate(d, size=f.shape[2:]) + torch.arange(f.shape[3]) / f.shape[3]
    ),
    "a scale of its own": lambda d, f: F.interpolate(
        F.interpolate(d, scale_factor=1.7), size=f.shape[2:]
    ),
}


@pytest.mark.parametrize("name", UPS)
def test_other_sizes_compute_what_the_modules_do(name: str) -> None:
    network = packed(Net(UPS[name]))
    for size in SIZES:
        x = torch.randn(1, 3, *size)
        assert torch.equal(network(x), network.network(x)), size
    assert network.unfused is None
    assert len(general(network)) == 1, [f.fixed for f in network._forms.values()]


def test_units_of_all_kinds() -> None:
    class Every(nn.Module):
        def __init__(self, grouped: int) -> None:
            super().__init__()
            self.one = BiConv2d(3, 16, 5, stride=3, pre_padding="same")
            self.two = BiConv2d(16, 16, 3, groups=grouped, padding=2, dilation=2)
            self.pad = BiConv2d(16, 8, 3, padding=1, padding_mode="replicate")
            self.up = BiConvTranspose2d(8, 6, 3, stride=2, output_padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.pad(F.max_pool2d(self.two(self.one(x)), 3, 2, 1, ceil_mode=True)))

    for grouped in (1, 4, 16):
        network = packed(Every(grouped))
        for size in [(12, 12), (13, 12), (9, 31), (30, 31), (8, 8), (31, 29)]:
            x = torch.randn(2, 3, *size)
            assert torch.equal(network(x), network.network(x)), (grouped, size)
        assert len(general(network)) == 1, [f.fixed for f in network._forms.values()]


def test_one_and_three_dimensions() -> None:
    for make, sizes in (
        (BiConv1d, [(9,), (10,), (11,), (12,), (33,), (2,)]),
        (BiConv3d, [(4, 5, 6), (5, 5, 5), (6, 5, 4), (7, 8, 9), (3, 3, 3), (2, 4, 3)]),
    ):
        network = packed(nn.Sequential(make(4, 8, 3, padding=1), nn.ReLU(), make(8, 4, 1)))
        for size in sizes:
            x = torch.randn(2, 4, *size)
            assert torch.equal(network(x), network.network(x))
        assert len(general(network)) == 1, [f.fixed for f in network._forms.values()]


def test_8_bit_layers() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU6()),
        nn.Conv2d(16, 2, 1),
    ).eval()
    batches = [torch.randn(2, 3, 16, 16) for _ in range(2)]
    student = binarize.prepare_student(teacher, "deploy", batches, example_inputs=batches[0])
    network = binarize.pack(student.eval())
    for size in SIZES:
        x = torch.randn(1, 3, *size)
        assert torch.equal(network(x), network.network(x)), size
    assert len(general(network)) == 1, [f.fixed for f in network._forms.values()]


def test_few_sizes_have_a_program_each() -> None:
    network = packed(Net(UPS["nearest to the size"]))
    for size in SIZES[:3]:
        network(torch.randn(1, 3, *size))
    assert len(network.programs) == 3
    assert not general(network)
    network(torch.randn(1, 3, *SIZES[3]))
    assert len(general(network)) == 1, [f.fixed for f in network._forms.values()]


def test_a_thousand_sizes_take_the_memory_of_few() -> None:
    network = packed(nn.Sequential(BiConv2d(2, 4, 3, padding=1), nn.ReLU()))
    for height in range(2, 42):
        for width in range(2, 27):
            network(torch.zeros(1, 2, height, width))
    assert len(network.programs) == 16
    assert len({id(each) for each in network.programs.values()}) == 1
    assert len(general(network)) == 1, [f.fixed for f in network._forms.values()]


class Branch(nn.Module):
    """Large inputs are shrunk first."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = BiConv2d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] > 200:
            x = F.avg_pool2d(x, 2)
        return self.unit(x)


def test_a_branch_on_the_size_is_a_condition() -> None:
    network = packed(Branch())
    for side in (4, 20, 5, 6, 21, 7, 22, 14, 15, 16, 23, 24):
        x = torch.randn(1, 2, side, side)
        assert torch.equal(network(x), network.network(x)), side
    assert len(general(network)) == 2


class Fixed(nn.Module):
    """A size becomes a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = BiConv2d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.unit(x) * float(int(x.shape[2]))


def test_a_size_that_is_read_as_a_number_keeps_programs_apart() -> None:
    network = packed(Fixed())
    for side in range(4, 10):
        x = torch.randn(1, 2, side, side)
        assert torch.equal(network(x), network.network(x)), side
    assert network.unfused is None
    assert len(network.programs) == 6
    assert not general(network)


class Keeps(nn.Module):
    """What it keeps of its last input, in places that outlive a copy."""

    last: ClassVar[Any] = (0, 0)
    seen: ClassVar[list[Any]] = []
    tables: ClassVar[dict[Any, Tensor]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.unit = BiConv2d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        Keeps.last = tuple(x.shape[2:])
        Keeps.seen.append(x.shape[2])
        Keeps.tables["width"] = x.shape[3]  # type: ignore[assignment]
        return self.unit(x) + Keeps.last[0]


def test_nothing_symbolic_is_left_behind() -> None:
    network = packed(Keeps())
    for side in range(4, 10):
        x = torch.randn(1, 2, side, side)
        assert torch.equal(network(x), network.network(x)), side
    left = [*Keeps.last, *Keeps.seen, *Keeps.tables.values()]
    assert {type(value) for value in left} == {int}


@functools.lru_cache
def ramp(length: int) -> Tensor:
    return torch.linspace(0, 1, length)


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unit = BiConv2d(2, 4, 3, padding=1)
        self.grids: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if height not in self.grids:
            self.grids[height] = torch.linspace(-1, 1, height)[:, None]
        return self.unit(x + self.grids[height] * ramp(width))


def test_tables_by_size() -> None:
    network = packed(Cached())
    for side in range(4, 10):
        x = torch.randn(1, 2, side, 12 - side + 3)
        assert torch.equal(network(x), network.network(x)), side
    assert network.unfused is None


def test_memory_orders_and_single_samples_are_apart() -> None:
    network = packed(Net(UPS["bilinear"]))
    for size in SIZES[:5]:
        for samples in (1, 2):
            x = torch.randn(samples, 3, *size)
            last = x.contiguous(memory_format=torch.channels_last)
            odd = torch.randn(samples, 3, 2 * size[0], size[1])[:, :, ::2]
            for each in (x, last, odd):
                assert torch.equal(network(each), network.network(each))
    # Strided inputs have no program of free sizes.
    assert len(general(network)) == 4


def test_empty_and_single_pixel_inputs() -> None:
    network = packed(nn.Sequential(BiConv2d(2, 4, 3, padding=1), nn.ReLU()))
    for size in SIZES[:5]:
        network(torch.randn(2, 2, *size))
    assert network(torch.zeros(0, 2, 8, 8)).shape == (0, 4, 8, 8)
    for shape in ((2, 2, 1, 8), (2, 2, 1, 1), (1, 2, 9, 9)):
        x = torch.randn(shape)
        assert torch.equal(network(x), network.network(x))


# Files


def test_a_file_serves_other_sizes(tmp_path: Path) -> None:
    network, path = packed(Net(UPS["nearest to the size"])), tmp_path / "net.safetensors"
    example = torch.randn(1, 3, 16, 16)
    network(example)
    binarize.save(network, path)
    loaded: Any = binarize.load(path)
    assert torch.equal(loaded(example), network(example))
    sizes = [size for size in SIZES if size != (2, 2)]  # one pixel at half the size
    for samples, size in [(1, s) for s in sizes] + [(2, (10, 12)), (3, (11, 6))]:
        x = torch.randn(samples, 3, *size)
        assert torch.equal(loaded(x), network.network(x)), (samples, size)
        last = x.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(loaded(last), loaded(x))
    assert loaded.sizes == ["1x3x16x16 float32", "1x3xHxW float32", "Nx3xHxW float32"]


@pytest.mark.parametrize("count", [5, 40])
def test_a_file_after_many_sizes(tmp_path: Path, count: int) -> None:
    # Of 40 sizes, those with programs of their own are forgotten.
    network = packed(nn.Sequential(BiConv2d(2, 4, 3, padding=1), nn.ReLU()))
    inputs = [torch.randn(1, 2, 4 + side, 4) for side in range(count)]
    wanted = [network(x) for x in inputs]
    binarize.save(network, tmp_path / "net.safetensors")
    loaded: Any = binarize.load(tmp_path / "net.safetensors")
    for x, y in zip(inputs, wanted, strict=True):
        assert torch.equal(loaded(x), y)
    assert len(loaded.programs) == (3 if count == 5 else 0)
    runner = ProgramNetwork(loaded)
    assert not runner.fixed
    assert not runner.fixed_batch
    assert torch.equal(runner(inputs[4]), wanted[4])
    assert runner(torch.randn(3, 2, *runner.example_shapes[0][2:])).shape[0] == 3


def test_a_general_program_that_cannot_be_stored_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(program._NAMED, "operator.ge")  # its conditions need it
    network, path = packed(Branch()), tmp_path / "net.safetensors"
    x = torch.randn(1, 2, 5, 5)
    wanted = network(x)
    binarize.save(network, path)
    loaded: Any = binarize.load(path)
    assert not loaded.general
    assert torch.equal(loaded(x), wanted)


def test_what_a_file_does_not_serve(tmp_path: Path) -> None:
    network, path = packed(Net(UPS["bilinear"])), tmp_path / "net.safetensors"
    network(torch.randn(1, 3, 16, 16))
    binarize.save(network, path)
    loaded: Any = binarize.load(path)
    for x, size in (
        (torch.randn(1, 4, 16, 16), "1x4x16x16 float32"),
        (torch.randn(1, 3, 16, 16, dtype=torch.float64), "1x3x16x16 float64"),
        (torch.randn(1, 3, 1, 16), "1x3x1x16 float32"),
        (torch.randn(1, 3, 2, 2), "1x3x2x2 float32"),
    ):
        with pytest.raises(ModelError) as caught:
            loaded(x)
        assert str(caught.value) == (
            f"input='{size}': this file holds programs for 1x3x16x16 float32; 1x3xHxW float32; "
            "Nx3xHxW float32; pack the network, call it with such an input, and save it again"
        )


def test_a_file_keeps_conditions(tmp_path: Path) -> None:
    network, path = packed(Branch()), tmp_path / "net.safetensors"
    network(torch.randn(1, 2, 5, 5))
    binarize.save(network, path)
    loaded: Any = binarize.load(path)
    x = torch.randn(1, 2, 13, 15)  # 195 pixels
    assert torch.equal(loaded(x), network.network(x))
    with pytest.raises(ModelError, match="this file holds programs for"):
        loaded(torch.randn(1, 2, 15, 15))
