"""Properties of the pass over networks that hypothesis makes up.

A network is drawn as a description (frozen dataclasses, printed when a test fails), and built from
it with the kinds of blocks that people write: units of every kind of convolution, residual and
dense blocks, splits, gates, branches, pyramids, shared blocks, channels-last MLPs.
"""

from __future__ import annotations

import copy
import math
import os
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import binarize
from binarize.errors import ModelError
from binarize.nn import BinaryLayer

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
MAX_POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
SIZES = {1: (37,), 2: (16, 19), 3: (8, 9, 8)}
LINEAR_RESIZE = {1: "linear", 2: "bilinear", 3: "trilinear"}


# ------------------------------------------------------------------------------- descriptions


@dataclass(frozen=True)
class Unit:
    """A convolution with what stands round it; ``growing`` is by how much its width changes."""

    width: int = 8
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    groups: str = "one"
    padding: str = "half"
    transposed: bool = False
    bias: bool = True
    norm: str = "batch"
    act: str = "ReLU"
    order: str = "conv norm act"


@dataclass(frozen=True)
class Residual:
    body: tuple[Unit, ...]
    stride: int = 1
    projection: str = "none"
    addition: str = "x + y"
    act: str = "ReLU"
    scale: bool = False
    gate: bool = False


@dataclass(frozen=True)
class Dense:
    body: tuple[Unit, ...]


@dataclass(frozen=True)
class Split:
    body: tuple[Unit, ...]
    shuffle: bool


@dataclass(frozen=True)
class Branches:
    bodies: tuple[tuple[Unit, ...], ...]
    merge: str


@dataclass(frozen=True)
class Gate:
    kind: str


@dataclass(frozen=True)
class Mlp:
    norm: bool
    residual: bool
    act: str


@dataclass(frozen=True)
class Pyramid:
    down: str
    inner: tuple[Any, ...]
    up: str
    merge: str


@dataclass(frozen=True)
class Shared:
    block: Any
    times: int


@dataclass(frozen=True)
class Network:
    rank: int
    blocks: tuple[Any, ...]
    repeat: int = 1
    head: str = "map"


acts = st.sampled_from(["ReLU", "none", "ReLU inplace", "GELU", "F.relu", "x.relu_()", "F.silu"])
units = st.builds(
    Unit,
    width=st.sampled_from([8, 12, 4, 16]),
    kernel=st.sampled_from([3, 1, 5, 2, 4]),
    stride=st.sampled_from([1, 2, 3]),
    dilation=st.sampled_from([1, 2]),
    groups=st.sampled_from(["one", "two", "depthwise"]),
    padding=st.sampled_from(["half", "none", "same", "reflect", "one side", "one side reflect"]),
    transposed=st.booleans(),
    bias=st.booleans(),
    norm=st.sampled_from(["batch", "none", "group", "plain batch"]),
    act=acts,
    order=st.sampled_from(["conv norm act", "norm act conv"]),
)
# Units that leave the size alone, for the inside of blocks.
steady = st.builds(
    Unit,
    width=st.sampled_from([8, 12, 4]),
    kernel=st.sampled_from([3, 1, 5]),
    dilation=st.sampled_from([1, 2]),
    groups=st.sampled_from(["one", "two", "depthwise"]),
    padding=st.sampled_from(["half", "same", "reflect"]),
    bias=st.booleans(),
    norm=st.sampled_from(["batch", "none", "group"]),
    act=acts,
    order=st.sampled_from(["conv norm act", "norm act conv"]),
)
bodies = st.lists(steady, min_size=1, max_size=3).map(tuple)
simple = st.one_of(
    units,
    st.builds(
        Residual,
        bodies,
        stride=st.sampled_from([1, 2]),
        projection=st.sampled_from(["none", "conv", "conv norm", "pool conv norm"]),
        addition=st.sampled_from(
            ["x + y", "y + x", "y += x", "torch.add", "y.add_(x)", "stack sum", "add twice"]
        ),
        act=acts,
        scale=st.booleans(),
        gate=st.booleans(),
    ),
    st.builds(Dense, bodies),
    st.builds(Split, bodies, st.booleans()),
    st.builds(
        Branches,
        st.lists(bodies, min_size=2, max_size=3).map(tuple),
        st.sampled_from(["sum", "cat", "product"]),
    ),
    st.builds(Gate, st.sampled_from(["channel", "channel linear", "spatial", "whole"])),
    st.builds(Mlp, st.booleans(), st.booleans(), acts),
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(
            Pyramid,
            st.sampled_from(["max pool", "conv", "average pool"]),
            st.lists(inner, min_size=1, max_size=2).map(tuple),
            st.sampled_from(["nearest", "linear", "transposed"]),
            st.sampled_from(["add", "cat"]),
        ),
        st.builds(Shared, inner, st.sampled_from([2, 3])),
    )


blocks = st.recursive(simple, _nested, max_leaves=4)
networks = st.builds(
    Network,
    rank=st.sampled_from([2, 2, 2, 1, 3]),
    blocks=st.lists(blocks, min_size=1, max_size=4).map(tuple),
    repeat=st.sampled_from([1, 1, 4]),
    head=st.sampled_from(["map", "resized map", "classes", "features", "two maps"]),
)


# ----------------------------------------------------------------------------------- modules


def activate(name: str, x: Tensor) -> Tensor:
    if name == "F.relu":
        return F.relu(x)
    if name == "x.relu_()":
        return x.relu_()
    if name == "F.silu":
        return F.silu(x)
    return x


def activation(name: str) -> nn.Module | None:
    return {
        "ReLU": nn.ReLU(),
        "ReLU inplace": nn.ReLU(inplace=True),
        "GELU": nn.GELU(),
    }.get(name)


class UnitModule(nn.Module):
    def __init__(self, unit: Unit, rank: int, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        stride = max(stride, unit.stride)
        groups = {"one": 1, "two": 2, "depthwise": channels}[unit.groups]
        if unit.groups == "depthwise":
            width = max(width // channels, 1) * channels
        reach = unit.dilation * (unit.kernel - 1) + 1
        options: dict[str, Any] = {
            "stride": stride,
            "dilation": unit.dilation,
            "groups": groups,
            "bias": unit.bias,
        }
        self.pads, self.pad_mode = [], "constant"
        if unit.transposed:
            options["padding"] = min(1, unit.kernel // 2)
            options["output_padding"] = stride - 1
            cls = TRANSPOSED[rank]
        else:
            cls = CONV[rank]
            options["padding"] = reach // 2
            if unit.padding == "same" and stride == 1:
                options["padding"] = "same"
            elif unit.padding == "none":
                options["padding"] = 0
            elif unit.padding == "reflect" and reach // 2 <= 2:
                options["padding_mode"] = "reflect"
            elif unit.padding.startswith("one side"):
                options["padding"] = 0
                self.pads = [0, min(reach - 1, 2)] * rank
                if unit.padding.endswith("reflect"):
                    self.pad_mode = "reflect"
        self.conv = cls(channels, width, unit.kernel, **options)
        self.order = unit.order
        of = width if unit.order == "conv norm act" else channels
        self.norm = None
        if unit.norm == "group":
            self.norm = nn.GroupNorm(2, of)
        elif unit.norm != "none":
            plain = unit.norm == "plain batch"
            self.norm = BATCH_NORM[rank](of, affine=not plain, track_running_stats=not plain)
        self.act, self.name = activation(unit.act), unit.act
        self.width = width

    def after(self, x: Tensor) -> Tensor:
        if self.norm is not None:
            x = self.norm(x)
        return activate(self.name, x) if self.act is None else self.act(x)

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "norm act conv":
            x = self.after(x + 0 if self.norm is None else x)
        if self.pads:
            x = F.pad(x, self.pads, mode=self.pad_mode)
        x = self.conv(x)
        return self.after(x) if self.order == "conv norm act" else x


def chain(body: tuple[Unit, ...], rank: int, channels: int, width: int, stride: int = 1) -> Any:
    """Units in a row that end with ``width`` channels."""
    modules: list[nn.Module] = []
    for i, unit in enumerate(body):
        last = i == len(body) - 1
        modules.append(
            UnitModule(unit, rank, channels, width if last else unit.width, stride if not i else 1)
        )
        channels = modules[-1].width
    if channels != width:
        modules.append(CONV[rank](channels, width, 1))
    return nn.Sequential(*modules)


class ResidualModule(nn.Module):
    def __init__(self, block: Residual, rank: int, channels: int) -> None:
        super().__init__()
        width = channels if block.projection == "none" else block.body[0].width
        stride = 1 if block.projection == "none" else block.stride
        self.body = chain(block.body, rank, channels, width, stride)
        steps: list[nn.Module] = []
        if "conv" in block.projection:
            pooled = "pool" in block.projection and stride > 1
            if pooled:
                steps.append(MAX_POOL[rank](stride, ceil_mode=True))
            steps.append(CONV[rank](channels, width, 1, 1 if pooled else stride, bias=False))
            if "norm" in block.projection:
                steps.append(BATCH_NORM[rank](width))
        self.shortcut = nn.Sequential(*steps) if steps else None
        self.addition, self.name = block.addition, block.act
        self.act = activation(block.act)
        shape = (1, width, *[1] * rank)
        self.scale = nn.Parameter(torch.ones(shape)) if block.scale else None
        self.gate = GateModule(Gate("channel"), rank, width) if block.gate else None
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.gate is not None:
            y = self.gate(y)
        if self.scale is not None:
            y = y * self.scale
        if self.shortcut is not None:
            x = self.shortcut(x)
        if self.addition == "x + y":
            y = x + y
        elif self.addition == "y + x":
            y = y + x
        elif self.addition == "y += x":
            y = y + 0
            y += x
        elif self.addition == "torch.add":
            y = torch.add(x, y)
        elif self.addition == "y.add_(x)":
            y = y.clone().add_(x)
        elif self.addition == "stack sum":
            y = torch.stack([x, y]).sum(0)
        else:
            y = x + (y + 1.0)
        return activate(self.name, y) if self.act is None else self.act(y)


class DenseModule(nn.Module):
    def __init__(self, block: Dense, rank: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.width = channels
        for unit in block.body:
            self.layers.append(chain((unit,), rank, self.width, 4))
            self.width += 4

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps, 1)


class SplitModule(nn.Module):
    def __init__(self, block: Split, rank: int, channels: int) -> None:
        super().__init__()
        self.body = chain(block.body, rank, channels // 2, channels // 2)
        self.shuffle, self.width = block.shuffle, channels

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        out = torch.cat([left, self.body(right)], dim=1)
        if self.shuffle:
            out = out.unflatten(1, (2, self.width // 2)).transpose(1, 2).flatten(1, 2)
        return out


class BranchesModule(nn.Module):
    def __init__(self, block: Branches, rank: int, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(chain(b, rank, channels, 8) for b in block.bodies)
        self.merge = block.merge
        self.width = 8 * len(block.bodies) if block.merge == "cat" else 8

    def forward(self, x: Tensor) -> Tensor:
        maps = [branch(x) for branch in self.branches]
        if self.merge == "cat":
            return torch.cat(maps, 1)
        if self.merge == "sum":
            return sum(maps)
        out = maps[0]
        for other in maps[1:]:
            out = out * other.sigmoid()
        return out


class GateModule(nn.Module):
    def __init__(self, block: Gate, rank: int, channels: int) -> None:
        super().__init__()
        self.kind, self.rank, self.width = block.kind, rank, channels
        if block.kind == "channel linear":
            self.reduce, self.expand = nn.Linear(channels, 4), nn.Linear(4, channels)
        elif block.kind == "spatial":
            self.reduce, self.expand = CONV[rank](channels, 4, 3, padding=1), CONV[rank](4, 1, 1)
        else:
            self.reduce, self.expand = CONV[rank](channels, 4, 1), CONV[rank](4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        g = x
        spatial = list(range(2, 2 + self.rank))
        if self.kind == "channel":
            g = x.mean(spatial, keepdim=True)
        elif self.kind == "channel linear":
            g = x.mean(spatial)
        g = torch.sigmoid(self.expand(F.relu(self.reduce(g))))
        if self.kind == "channel linear":
            g = g.view(g.shape[0], self.width, *[1] * self.rank)
        return x * g


class MlpModule(nn.Module):
    def __init__(self, block: Mlp, rank: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels) if block.norm else None
        self.fc1, self.fc2 = nn.Linear(channels, 16), nn.Linear(16, channels)
        self.act, self.name = activation(block.act), block.act
        self.residual, self.width = block.residual, channels

    def forward(self, x: Tensor) -> Tensor:
        y = x.movedim(1, -1)
        if self.norm is not None:
            y = self.norm(y)
        y = self.fc1(y)
        y = activate(self.name, y) if self.act is None else self.act(y)
        y = self.fc2(y).movedim(-1, 1)
        return x + y if self.residual else y


class PyramidModule(nn.Module):
    def __init__(self, block: Pyramid, rank: int, channels: int) -> None:
        super().__init__()
        self.down: nn.Module = MAX_POOL[rank](2, ceil_mode=True)
        if block.down == "conv":
            self.down = CONV[rank](channels, channels, 3, 2, 1)
        elif block.down == "average pool":
            self.down = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[rank](2, ceil_mode=True)
        self.inner, width = row(block.inner, rank, channels)
        self.up, self.merge, self.rank = block.up, block.merge, rank
        if block.up == "transposed":
            self.raise_ = TRANSPOSED[rank](width, channels, 2, 2)
        else:
            self.raise_ = CONV[rank](width, channels, 1)
        self.width = channels * 2 if block.merge == "cat" else channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.raise_(self.inner(self.down(x)))
        if self.up == "linear":
            y = F.interpolate(y, x.shape[2:], mode=LINEAR_RESIZE[self.rank], align_corners=False)
        else:
            y = F.interpolate(y, size=x.shape[2:], mode="nearest")
        return torch.cat([x, y], 1) if self.merge == "cat" else x + y


class SharedModule(nn.Module):
    def __init__(self, block: Shared, rank: int, channels: int) -> None:
        super().__init__()
        inner = block.block
        if isinstance(inner, Unit):
            inner = replace(inner, stride=1)
        self.block = build(inner, rank, channels)
        self.back = None
        if self.block.width != channels:
            self.back = CONV[rank](self.block.width, channels, 1)
        self.times, self.width = block.times, channels

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.block(x)
            if self.back is not None:
                x = self.back(x)
        return x


def build(block: Any, rank: int, channels: int) -> Any:
    if isinstance(block, Unit):
        return UnitModule(block, rank, channels, block.width)
    cls = {
        Residual: ResidualModule,
        Dense: DenseModule,
        Split: SplitModule,
        Branches: BranchesModule,
        Gate: GateModule,
        Mlp: MlpModule,
        Pyramid: PyramidModule,
        Shared: SharedModule,
    }[type(block)]
    return cls(block, rank, channels)


def row(blocks: tuple[Any, ...], rank: int, channels: int) -> tuple[nn.Sequential, int]:
    modules: list[Any] = []
    for i, block in enumerate(blocks):
        if isinstance(block, Unit) and block.transposed and block in blocks[:i]:
            # Maps would outgrow the machine.
            block = replace(block, stride=1)
        modules.append(build(block, rank, channels))
        channels = modules[-1].width
        if channels > 48:
            # So would widths: concatenations double them.
            modules.append(CONV[rank](channels, 8, 1))
            channels = 8
    return nn.Sequential(*modules), channels


class NetworkModule(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        rank = network.rank
        self.stem = nn.Sequential(CONV[rank](3, 8, 3, padding=1), BATCH_NORM[rank](8))
        self.body, width = row(network.blocks * network.repeat, rank, 8)
        self.kind, self.rank = network.head, rank
        if network.head == "classes":
            self.head: nn.Module = nn.Linear(width, 5)
        else:
            self.head = CONV[rank](width, 5, 1)

    def forward(self, x: Tensor) -> Any:
        h = self.body(self.stem(x))
        if self.kind == "classes":
            return self.head(h.mean(list(range(2, 2 + self.rank))))
        if self.kind == "features":
            return {"features": [h], "out": self.head(h)}
        if self.kind == "two maps":
            return self.head(h), self.head(F.relu(h))
        y = self.head(h)
        return F.interpolate(y, size=x.shape[2:]) if self.kind == "resized map" else y


# -------------------------------------------------------------------------------- properties

EXAMPLES = int(os.environ.get("BINARIZE_EXAMPLES", "25"))
CHECKED = settings(
    max_examples=EXAMPLES,
    derandomize="BINARIZE_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def runs(model: nn.Module, x: Tensor) -> Any:
    """Its outputs, or ``None`` if the float network itself rejects such an input."""
    try:
        return model(x)
    except (RuntimeError, ValueError):
        return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths:UserWarning")
@CHECKED
@given(network=networks)
def test_a_network_of_any_blocks(network: Network, lab: SimpleNamespace) -> None:
    torch.manual_seed(0)
    teacher = NetworkModule(network)
    x = torch.randn(3, 3, *SIZES[network.rank])
    with torch.no_grad():
        expected = runs(copy.deepcopy(teacher), x)
    if expected is None:
        return
    before = lab.snapshot(teacher)
    try:
        student = binarize.convert(teacher, example_inputs=x)
    except ModelError as error:
        # Gates and layers over tokens alone.
        if "there is nothing to binarize" not in str(error):
            raise
        return
    assert lab.same(before, lab.snapshot(teacher))
    plan = student.binarize_plan
    every_layer_is_decided(plan, teacher, student, lab)
    with pytest.raises(ModelError, match="already"):
        binarize.convert(student, example_inputs=x)
    twin = copy.deepcopy(teacher)
    assert binarize.plan(twin, example_inputs=x) == plan

    widths: list[float] = []
    positions: list[int] = []

    def note(_module: nn.Module, args: Any, out: Tensor) -> None:
        # One element deviates from nothing.
        widths.append(out.std(correction=0).item())
        positions.append(args[0][0, 0].numel())

    hooks = [m.register_forward_hook(note) for m in student.modules() if isinstance(m, BinaryLayer)]
    got = student.train()(x)
    for hook in hooks:
        hook.remove()
    assert lab.shapes(got) == lab.shapes(expected)
    assert all(width <= 3 * math.sqrt(n) for n, width in enumerate(widths, start=1)), widths
    sum((y * torch.randn_like(y)).sum() for y in lab.flat(got)).backward()
    # A layer that is shared may see one position too, where a sign against the mean is the same for
    # all and a norm divides by its epsilon alone: ten in a row are more than a float can hold.
    if positions.count(1) < 10:
        for name, parameter in student.named_parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name

    teacher.eval()
    student.eval()
    with torch.no_grad():
        for cut in (0, 1, 3):
            y = x[:1, ..., cut:]
            expected = runs(teacher, y)
            if expected is not None:
                assert lab.shapes(student(y)) == lab.shapes(expected)
        for one, other in zip(
            lab.flat(copy.deepcopy(student)(x)), lab.flat(student(x)), strict=True
        ):
            assert torch.equal(one, other)


def every_layer_is_decided(
    plan: binarize.Plan, teacher: nn.Module, student: nn.Module, lab: SimpleNamespace
) -> None:
    theirs, ours = lab.layers(teacher), lab.layers(student)
    assert {d.site for d in plan.layers} == set(theirs)
    for decision in plan.layers:
        assert decision.reason
        assert decision.rule
        layer = ours.get(decision.site)
        assert isinstance(layer, BinaryLayer) == (decision.action == "binarize"), decision
        if decision.action == "keep":
            assert type(layer) is type(theirs[decision.site]), decision
