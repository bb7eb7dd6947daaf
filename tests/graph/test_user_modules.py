"""Modules as users write them: ways through by value, own output types, normed weights, U-Nets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import binarize
from binarize.nn import BinaryLayer

X = torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(5))


def actions(student: nn.Module) -> dict[str, str]:
    return {decision.site: decision.action for decision in student.binarize_plan.layers}


def trains(student: nn.Module, *outputs: Tensor) -> None:
    sum((y * torch.randn_like(y)).sum() for y in outputs).backward()
    for name, module in student.named_modules():
        if isinstance(module, BinaryLayer):
            assert module.weight.grad is not None, name
            assert module.weight.grad.isfinite().all(), name


class ByValue(nn.Module):
    """Goes one way for bright images and another for dark ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.bright, self.dark = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = self.bright(h) if x.mean() > 0 else self.dark(h)
        for _ in range(int(x.amax().clamp(1, 3))):
            h = self.body(h)
        return self.head(F.relu(h))


@pytest.mark.parametrize("shift", [-9.0, 9.0])
def test_ways_that_values_choose(shift: float, lab: SimpleNamespace) -> None:
    teacher = ByValue()
    before = lab.snapshot(teacher)
    student = binarize.convert(teacher, example_inputs=X + shift)
    assert lab.same(before, lab.snapshot(teacher))
    decided = actions(student)
    assert {site for site, action in decided.items() if action == "keep"} == {"stem", "head"}
    # Both ways are open still, whichever the example took.
    outputs = [student(X + way) for way in (-9.0, 9.0)]
    assert [y.shape for y in outputs] == [teacher(X + way).shape for way in (-9.0, 9.0)]
    trains(student, *outputs)
    unused = "dark" if shift > 0 else "bright"
    reason = next(d.reason for d in student.binarize_plan.layers if d.site == unused)
    assert "never" in reason


@dataclass
class Scene:
    depth: Tensor
    labels: list[Tensor]
    name: str = "scene"


class Fusion(nn.Module):
    """Two inputs of different channels, one of them optional, and a dataclass as the result."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.lidar = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
        self.towers = nn.ModuleDict(
            {
                "depth": nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(8, 8, 3, padding=1)})]),
                "labels": nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)),
            }
        )
        self.depth, self.labels = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 4, 1)

    def forward(self, image: Tensor, lidar: Tensor | None = None, *, scale: float = 1.0) -> Scene:
        h = self.image(image)
        if lidar is not None:
            h = h + self.lidar(lidar)
        depth, maps = h, []
        for level in self.towers["depth"]:
            depth = F.relu(level["conv"](depth))
        for layer in self.towers["labels"]:
            h = F.relu(layer(h))
            maps.append(self.labels(h))
        return Scene(scale * self.depth(depth), maps)


@pytest.mark.parametrize(
    "example", [(X, X[:, :1]), {"image": X, "lidar": X[:, :1]}, {"image": X, "scale": 2.0}, X]
)
def test_several_inputs_and_a_dataclass(example: object) -> None:
    teacher = Fusion()
    student = binarize.convert(teacher, example_inputs=example)
    decided = actions(student)
    towers = {f"towers.{place}" for place in ("depth.0.conv", "labels.0", "labels.1")}
    assert {site for site, action in decided.items() if action == "binarize"} - {"lidar"} == towers
    for args, kwargs in (((X,), {}), ((X,), {"scale": 3.0}), ((X, X[:, :1]), {})):
        scene, expected = student(*args, **kwargs), teacher(*args, **kwargs)
        assert type(scene) is Scene
        assert scene.name == "scene"
        assert scene.depth.shape == expected.depth.shape
        assert [y.shape for y in scene.labels] == [y.shape for y in expected.labels]
    trains(student, scene.depth, *scene.labels)


class Centred(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean((1, 2, 3), keepdim=True)


def centred(conv: nn.Conv2d) -> nn.Conv2d:
    parametrize.register_parametrization(conv, "weight", Centred())
    return conv


WRAPS = [parametrizations.weight_norm, parametrizations.spectral_norm, centred]
# The older kind, by hooks: a tensor that is no parameter stands in the weight's place.
HOOKED = [weight_norm, spectral_norm]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("wrap", [*WRAPS, *HOOKED])
def test_weights_that_are_computed(wrap: Callable[[nn.Module], nn.Module]) -> None:
    with torch.no_grad():
        convs = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)]
        convs[1].weight.add_(0.3)
    teacher = nn.Sequential(*(wrap(conv) for conv in convs))
    for _ in range(20):
        # Spectral norms iterate; the weight now has a history, and cannot be copied plainly.
        teacher(X)
    teacher.eval()
    used = teacher[1].weight
    teacher(X)
    state = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = binarize.convert(teacher, example_inputs=X)
    assert all(torch.equal(value, state[key]) for key, value in teacher.state_dict().items())
    assert isinstance(student[1], BinaryLayer)
    assert isinstance(student[1].weight, nn.Parameter)
    torch.testing.assert_close(student[1].weight.detach(), used.detach(), atol=1e-4, rtol=1e-3)
    # Kept layers are normed as before.
    torch.testing.assert_close(student[0](X), teacher[0](X))
    assert set(student[0].state_dict()) == set(teacher[0].state_dict())
    trains(student, student.train()(X))
    assert binarize.convert(teacher, example_inputs=X).binarize_plan == student.binarize_plan


def test_lazy_layers_that_have_run() -> None:
    teacher = nn.Sequential(
        nn.LazyConv2d(8, 3),
        nn.LazyConv2d(8, 3),
        nn.LazyBatchNorm2d(),
        nn.ReLU(),
        nn.LazyConv2d(2, 1),
    )
    teacher(X)
    student = binarize.convert(teacher, example_inputs=X)
    assert actions(student) == {"0": "keep", "1": "binarize", "4": "keep"}
    assert student.binarize_plan.layers[1].norm == "2"
    trains(student, student(X))


class DoubleConv(nn.Sequential):
    def __init__(self, rank: int, channels_in: int, channels: int) -> None:
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
        norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.InstanceNorm3d}[rank]
        super().__init__(
            conv(channels_in, channels, 3, padding=1),
            norm(channels),
            nn.LeakyReLU(inplace=True),
            conv(channels, channels, 3, padding=1),
            norm(channels),
            nn.LeakyReLU(inplace=True),
        )


class UNet(nn.Module):
    """The medical kind: pooling down, transposed convolutions up, skips padded to fit."""

    def __init__(self, rank: int, widths: tuple[int, ...] = (6, 12, 24)) -> None:
        super().__init__()
        pairs = list(zip((1, *widths), widths, strict=False))
        self.down = nn.ModuleList(DoubleConv(rank, a, b) for a, b in pairs)
        up = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[rank]
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(up(a, b, 2, 2) for a, b in steps)
        self.merge = nn.ModuleList(DoubleConv(rank, 2 * b, b) for _, b in steps)
        self.pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[rank](2)
        conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
        self.heads = nn.ModuleList([conv(widths[1], 3, 1), conv(widths[0], 3, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for i, block in enumerate(self.down):
            x = block(self.pool(x) if i else x)
            skips.append(x)
        out = []
        for up, merge, head, skip in zip(
            self.up, self.merge, self.heads, skips[-2::-1], strict=True
        ):
            x = up(x)
            short = [n - m for n, m in zip(skip.shape[2:], x.shape[2:], strict=True)]
            x = F.pad(x, [p for n in reversed(short) for p in (n // 2, n - n // 2)])
            x = merge(torch.cat([skip, x], dim=1))
            out.append(head(x))
        return out


@pytest.mark.parametrize("rank", [1, 3])
def test_u_nets_of_other_ranks(rank: int, lab: SimpleNamespace) -> None:
    sizes = {1: [(64,), (37,)], 3: [(8, 12, 8), (9, 7, 13)]}[rank]
    teacher = UNet(rank)
    example = torch.randn(2, 1, *sizes[0])
    student = binarize.convert(teacher, example_inputs=example)
    kept = {site for site, action in actions(student).items() if action == "keep"}
    assert kept == {"down.0.0", "heads.0", "heads.1"}
    for size in sizes:
        x = torch.randn(2, 1, *size)
        assert lab.shapes(student(x)) == lab.shapes(teacher(x))
    trains(student, *student(x))
    # Without example inputs, one is made from the first convolution.
    assert binarize.plan(teacher) == student.binarize_plan


class Shuffled(nn.Module):
    """An activation right after a channel shuffle, and one after a channels-last layout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.mix, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
        self.first, self.last = nn.ReLU(), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.stem(x))
        x = self.first(x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2))
        x = self.last(self.mix(x).movedim(1, -1))
        return self.head(x.permute(0, 3, 1, 2))


@pytest.mark.parametrize("size", [(8, 8), (6, 2), (5, 7)])
def test_channels_are_found_wherever_they_go(size: tuple[int, int]) -> None:
    student = binarize.convert(Shuffled(), example_inputs=torch.randn(2, 3, *size))
    assert (student.first.channels, student.first.channel_dim) == (8, 1)
    assert (student.last.channels, student.last.channel_dim) == (8, -1)
    assert student(torch.randn(2, 3, 9, 11)).shape == (2, 2, 9, 11)


class Part:
    """A result that knows what it belongs to."""

    def __init__(self, value: Tensor) -> None:
        self.whole, self.value = self, value


def test_a_result_that_refers_to_itself() -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Part:
            return Part(super().forward(x))

    net = Net(*(nn.Conv2d(a, b, 3) for a, b in ((3, 8), (8, 8), (8, 2))))
    actions = [d.action for d in binarize.plan(net, example_inputs=torch.zeros(1, 3, 9, 9)).layers]
    assert actions == ["keep", "binarize", "keep"]
