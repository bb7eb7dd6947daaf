"""The paper's network: the counts of the authors' network, and a hand-written twin's outputs.

The twin below is written without `binarize`, from the formulas: every convolution but the first
and the last is a unit with its own bypass, no block additions, PReLU for GELU and ReLU but the
head's. That its `state_dict` loads strictly says that the converted network has no part more.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.nn import BinaryLayer

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "paper_network.py"
SMALL = {"dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1), "head": 16}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("paper_network", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# Counts at 480x480 and 151 classes, against the released network


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.zeros(1, 3, 480, 480, device="meta")


@pytest.fixture(scope="module")
def network(example: ModuleType) -> nn.Module:
    with torch.device("meta"):
        return example.DenseNetwork(151).eval()


@pytest.fixture(scope="module")
def student(network: nn.Module, image: Tensor) -> nn.Module:
    return binarize.convert(network, "bidense-released", example_inputs=image)


@pytest.fixture(scope="module")
def report(student: nn.Module, image: Tensor) -> binarize.Report:
    return binarize.report(student, image)


def test_float_network_has_the_released_size(network: nn.Module, image: Tensor) -> None:
    report = binarize.report(network, image)

    assert report.params == 39_912_535
    assert report.ops == 69_333_633_792
    assert report.binary_params == report.binary_ops == 0


def test_as_many_binary_weights_and_channels(report: binarize.Report, student: nn.Module) -> None:
    units = [m for m in student.modules() if isinstance(m, BinaryLayer)]

    assert report.binary_params == 39_759_840
    assert sum(unit.in_channels for unit in units) == 47_072
    for name in ("k", "b", "a"):
        assert sum(getattr(unit.binarizer, name).numel() for unit in units) == 47_072


def test_effective_counts(report: binarize.Report) -> None:
    # The authors' network has one shift more, of 96 channels, after the pyramid's fusion.
    assert report.params == 1_551_158 - 96
    assert report.params == pytest.approx(1_551_200, rel=1e-4)
    assert report.binary_ops == 64_814_107_392
    assert report.ops == pytest.approx(5.532e9, rel=1e-4)


def test_report_tells_the_float_network(
    report: binarize.Report, network: nn.Module, image: Tensor
) -> None:
    plain = binarize.report(network, image)

    assert report.reference_params == plain.params
    assert report.reference_ops == plain.ops
    assert report.reference_bytes == plain.reference_bytes


def test_only_the_first_and_the_last_layer_stay(student: nn.Module) -> None:
    layers = student.binarize_plan.layers

    assert [d.site for d in layers if d.action == "keep"] == ["encoder.downs.0.0", "predict.1"]
    assert {d.action for d in layers} == {"keep", "binarize"}
    assert all(d.carries for d in layers)


def test_every_block_addition_goes_and_no_merge(student: nn.Module) -> None:
    additions = student.binarize_plan.additions

    # Two in each of 18 blocks, one in the smoothing; the pyramid's own are no shortcuts.
    assert {d.action for d in additions} == {"drop"}
    assert len(additions) == 37
    assert not any(d.scope == "pyramid" for d in additions)


def test_only_the_heads_relu_stays(student: nn.Module) -> None:
    activations = student.binarize_plan.activations

    assert [d.site for d in activations if d.action == "keep"] == ["predict.0.2"]
    assert len(activations) == 25


def test_shared_convolution_counts_once_and_runs_three_times(report: binarize.Report) -> None:
    row = next(row for row in report.layers if row.name == "pyramid.smooth.conv")

    assert row.calls == 3
    assert row.binary_params == 96 * 96 * 9
    assert row.binary_ops == 96 * 96 * 9 * (120**2 + 60**2 + 30**2)


# A twin by hand


def bypass(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    if x.shape[2:] != size:
        x = F.avg_pool2d(x, 2)
    copies, rest = divmod(channels, x.shape[1])
    parts = [x] * copies
    if rest:
        groups = x.shape[1] // rest
        steps = rest - 1
        for j in range(steps):
            channel = [x[:, j + i * steps] for i in range(groups)]
            parts.append(torch.stack(channel, 1).mean(1, keepdim=True))
        parts.append(x[:, groups * steps :].mean(1, keepdim=True))
    return torch.cat(parts, 1)


class Dab(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.ones(channels))
        self.b = nn.Parameter(torch.zeros(channels))
        self.a = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        def wide(p: Tensor) -> Tensor:
            return p.view(1, -1, 1, 1)

        shifted = x - wide(self.k) * x.mean((2, 3), keepdim=True) - wide(self.b)
        spread = shifted.abs().mean((2, 3), keepdim=True)
        alpha = torch.exp(wide(self.a) * (spread - 1))
        return alpha * torch.where(shifted >= 0, 1.0, -1.0)


class Unit(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs // groups, kernel, kernel))
        self.binarizer = Dab(inputs)
        self.norm = nn.BatchNorm2d(outputs)
        self.stride, self.groups = stride, groups
        self.padding = kernel // 2 if stride == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean((1, 2, 3), keepdim=True)
        weight = scale * torch.where(self.weight >= 0, 1.0, -1.0)
        y = F.conv2d(self.binarizer(x), weight, None, self.stride, self.padding, groups=self.groups)
        return self.norm(y) + bypass(x, len(weight), y.shape[2:])


class Act(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.shift.view(1, -1, 1, 1)
        return torch.where(x > 0, x, self.slope.view(1, -1, 1, 1) * x)


class Block(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise = Unit(c, c, 7, groups=c)
        self.expand = Unit(c, 4 * c, 1)
        self.act = Act(4 * c)
        self.reduce = Unit(4 * c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(self.act(self.expand(self.depthwise(x))))


def named(**parts: nn.Module) -> nn.ModuleDict:
    return nn.ModuleDict(parts)


class Twin(nn.Module):
    def __init__(
        self, outputs: int, dims: Sequence[int], depths: Sequence[int], head: int, max_depth: float
    ) -> None:
        super().__init__()
        width, deep = dims[0], dims[-1]
        middle = head // 4 if max_depth else head
        self.max_depth = max_depth
        stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width))
        downs = [nn.Sequential(Unit(a, b, 2, 2)) for a, b in pairwise(dims)]
        self.encoder = named(
            downs=nn.ModuleList([stem, *downs]),
            stages=nn.ModuleList(
                [
                    nn.Sequential(*(Block(c) for _ in range(n)))
                    for c, n in zip(dims, depths, strict=True)
                ]
            ),
        )
        self.context = named(
            pools=nn.ModuleList([named(**{"1": self.step(deep, deep // 4, 1)}) for _ in range(4)]),
            fuse=self.step(2 * deep, deep, 3),
        )
        self.pyramid = named(
            laterals=nn.ModuleList([nn.Sequential(Unit(c, width, 1)) for c in dims[1:]]),
            smooth=named(conv=Unit(width, width, 3)),
            fuse=self.step(4 * width, width, 3),
        )
        self.head = nn.Sequential(Unit(width, head, 3))
        self.predict = nn.Sequential(
            nn.Sequential(Unit(head, middle, 3)), nn.Conv2d(middle, outputs, 1)
        )

    @staticmethod
    def step(inputs: int, outputs: int, kernel: int) -> nn.ModuleDict:
        return named(**{"0": Unit(inputs, outputs, kernel), "2": Act(outputs)})

    def forward(self, image: Tensor) -> Tensor:
        def up(x: Tensor, like: Tensor) -> Tensor:
            return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)

        def run(step: nn.ModuleDict, x: Tensor) -> Tensor:
            return step["2"](step["0"](x))

        x, maps = image, []
        for down, stage in zip(self.encoder["downs"], self.encoder["stages"], strict=True):
            x = stage(down(x))
            maps.append(x)
        pooled = [
            up(run(pool["1"], F.adaptive_avg_pool2d(x, size)), x)
            for size, pool in zip((1, 2, 4, 6), self.context["pools"], strict=True)
        ]
        maps[-1] = run(self.context["fuse"], torch.cat([x, *pooled], 1))
        one, two, three, four = maps
        two, three, four = (
            lateral(x)
            for lateral, x in zip(self.pyramid["laterals"], (two, three, four), strict=True)
        )
        conv = self.pyramid["smooth"]["conv"]
        merged = [
            conv(up(two, one) + one),
            conv(up(three, two) + two),
            conv(up(four, three) + three),
        ]
        x = run(self.pyramid["fuse"], torch.cat([up(m, one) for m in (*merged, four)], 1))
        x = self.predict[1](torch.relu(self.predict[0](up(self.head(x), image))))
        return self.max_depth * torch.sigmoid(x) if self.max_depth else x


def scramble(network: nn.Module) -> None:
    """Give every tensor random values: initial ones would hide that a part is not used."""
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith("slope"):
            tensor.uniform_(0.1, 0.9)
        elif tensor.is_floating_point():
            tensor.add_(0.1 * torch.randn_like(tensor))


@pytest.mark.parametrize(
    ("task", "size", "training"),
    [
        ("segmentation", (64, 96), False),
        ("segmentation", (75, 91), True),
        ("depth", (64, 64), True),
        ("depth", (75, 91), False),
    ],
)
def test_converted_network_is_the_hand_written_one(
    example: ModuleType, task: str, size: tuple[int, int], training: bool
) -> None:
    classes, max_depth = (0, 10.0) if task == "depth" else (5, 0.0)
    network = example.DenseNetwork(classes, max_depth=10.0, **SMALL)
    image = torch.randn(2, 3, *size)
    student = binarize.convert(network, "bidense-released", example_inputs=image)
    scramble(student)
    twin = Twin(classes or 1, max_depth=max_depth, **SMALL)
    twin.load_state_dict(student.state_dict())
    student.train(training)
    twin.train(training)
    for drop in (m for m in student.modules() if isinstance(m, nn.Dropout2d)):
        drop.eval()

    ours, theirs = student(image), twin(image)

    assert ours.shape == (2, classes or 1, *size)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_dropping_a_bypass_shows(example: ModuleType) -> None:
    """The comparison is sharp: one bypass less in 20 is told apart."""
    network = example.DenseNetwork(5, **SMALL)
    image = torch.randn(2, 3, 64, 64)
    student = binarize.convert(network, "bidense-released", example_inputs=image).eval()
    scramble(student)
    twin = Twin(5, max_depth=0.0, **SMALL).eval()
    twin.load_state_dict(student.state_dict())
    student.encoder.stages[2][1].depthwise.bypass = None

    assert (student(image) - twin(image)).abs().max() > 1e-2


def test_script_prints_the_report(
    example: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = example.DenseNetwork
    monkeypatch.setattr(example, "DenseNetwork", lambda classes: network(classes, **SMALL))
    monkeypatch.setenv("COLUMNS", "100")

    example.main(["--task", "depth", "--size", "64", "96"])

    printed = capsys.readouterr().out
    assert "1-bit by policy 'bidense-released'" in printed
    assert "1×3×64×96" in printed
    assert "pyramid.smooth.conv ×3" in printed
