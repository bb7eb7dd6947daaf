"""One norm, one activation, one block at several places; what is carried where ways meet."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

import binarize
from binarize.nn import BinaryLayer


def conv(inputs: int, outputs: int, size: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


class Ends(nn.Module):
    """A stem and a head, with what a test is about between them."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.stem = conv(3, 8)
        for name, part in parts.items():
            self.add_module(name, part)
        self.head = nn.LazyConv2d(2, 1)

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)))


def ready(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    model.eval()(torch.zeros(1, 3, 16, 16))
    return model


class Adding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(8, 8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return other + self.norm(self.conv(x))


class ResidualOnce(Ends):
    def middle(self, x: Tensor) -> Tensor:
        y = F.relu(self.block(x, x))
        return self.block(y, self.other(x) if self.once else y)


@pytest.mark.parametrize("once", [True, False])
def test_a_block_that_is_residual_at_one_call_keeps_its_addition(once: bool) -> None:
    model = ResidualOnce(block=Adding(), other=nn.Sequential(conv(8, 8), nn.GroupNorm(2, 8)))
    model.once = once
    student = binarize.convert(ready(model))
    (addition,) = student.binarize_plan.additions
    assert addition.action == ("keep" if once else "drop")
    (layer,) = [d for d in student.binarize_plan.layers if d.site == "block.conv"]
    assert layer.carries is not once
    assert student(torch.randn(2, 3, 16, 16)).shape == (2, 2, 16, 16)


class Chain(Ends):
    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


@pytest.mark.parametrize("affine", [True, False])
def test_an_instance_norm_stays(affine: bool) -> None:
    norm = nn.InstanceNorm2d(8, affine=affine, track_running_stats=True)
    student = binarize.convert(ready(Chain(conv=conv(8, 8), norm=norm)))
    assert type(student.norm) is nn.InstanceNorm2d
    assert isinstance(student.conv, BinaryLayer)
    assert [d.norm for d in student.binarize_plan.layers] == [None] * 3
    assert torch.equal(student.norm.running_mean, norm.running_mean)


def test_a_norm_with_an_activation_is_adopted_with_its_statistics() -> None:
    norm = BatchNormAct2d(8, eps=1e-3, momentum=0.2)
    model = ready(Chain(conv=conv(8, 8), norm=norm))
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
            tensor.copy_(torch.rand(8) + 0.5)
        norm.num_batches_tracked.fill_(7)
    unit = binarize.convert(model).conv
    assert torch.allclose(unit.norm.running_mean, norm.running_mean - model.conv.bias)
    for name in ("running_var", "weight", "bias", "num_batches_tracked"):
        assert torch.equal(getattr(unit.norm, name), getattr(norm, name)), name
    assert (unit.norm.eps, unit.norm.momentum) == (1e-3, 0.2)


class Shared(Ends):
    def middle(self, x: Tensor) -> Tensor:
        return self.norm(self.b(F.relu(self.norm(self.a(x)))))


def test_a_norm_of_two_layers_stays() -> None:
    norm = nn.BatchNorm2d(8)
    student = binarize.convert(ready(Shared(a=conv(8, 8), b=conv(8, 8), norm=norm)))
    assert {d.norm for d in student.binarize_plan.layers} == {None}
    assert type(student.norm) is nn.BatchNorm2d
    assert student.a.norm is not student.b.norm


class TwoWidths(Ends):
    def middle(self, x: Tensor) -> Tensor:
        return self.act(self.b(self.act(self.a(x))))


def test_one_activation_at_two_widths_becomes_two() -> None:
    student = binarize.convert(ready(TwoWidths(a=conv(8, 8), b=conv(8, 12), act=nn.ReLU())))
    replaced = [d for d in student.binarize_plan.activations if d.action == "replace"]
    assert [d.channels for d in replaced] == [8, 12]
    assert student(torch.randn(2, 3, 16, 16)).shape == (2, 2, 16, 16)


class ActiveBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def test_one_block_at_two_widths_keeps_its_activation() -> None:
    student = binarize.convert(ready(TwoWidths(a=conv(8, 8), b=conv(8, 12), act=ActiveBlock())))
    (activation,) = student.binarize_plan.activations
    assert activation.action == "keep"
    assert (activation.channels, activation.channel_dim) == (0, 1)
    assert type(student.act.act) is nn.ReLU


class Meeting(Ends):
    def middle(self, x: Tensor) -> Tensor:
        return x + (self.carried(x) + self.broken(x))


def test_a_carried_and_a_broken_branch_carry_together() -> None:
    model = Meeting(carried=conv(8, 8), broken=nn.Sequential(conv(8, 8), nn.GroupNorm(2, 8)))
    plan = binarize.plan(ready(model))
    assert {d.site: d.action for d in plan.additions}["(root):add#1"] == "drop"
    assert {d.site: d.carries for d in plan.layers}["carried"]
    # Neither of two broken ones does.
    model = Meeting(
        carried=nn.Sequential(conv(8, 8), nn.GroupNorm(2, 8)),
        broken=nn.Sequential(conv(8, 8), nn.GroupNorm(2, 8)),
    )
    plan = binarize.plan(ready(model))
    assert {d.action for d in plan.additions} == {"keep"}


class Line(Ends):
    def middle(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("policy", ["bireal", "bidense"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "out_channels": 16},
    ],
)
def test_a_plain_shortcut_passes_by_transposed_convolutions(
    options: dict[str, int], policy: str
) -> None:
    model = ready(Line(layer=nn.ConvTranspose2d(8, **{"out_channels": 8, **options})))
    student = binarize.convert(model, policy)
    (decision,) = [d for d in student.binarize_plan.layers if d.site == "layer"]
    assert decision.action == "binarize"
    assert decision.carries is (policy == "bidense")
    assert (student.layer.bypass is not None) is decision.carries
    assert ("no bypass" in decision.reason) is not decision.carries
    x = torch.randn(2, 3, 9, 11)
    assert student(x).shape == model(x).shape


class Merge(Ends):
    """A sum of several paths with binary layers, and a feature map that no bypass carries."""

    def __init__(self, ways: int, depth: int, factor: float) -> None:
        super().__init__(
            ways=nn.ModuleList(
                nn.Sequential(*(conv(8, 8) for _ in range(depth))) for _ in range(ways)
            ),
        )
        self.factor = factor

    def middle(self, x: Tensor) -> Tensor:
        found = self.factor * x.sigmoid()
        for way in self.ways:
            found = found + way(x)
        return found


# A way of n layers is sqrt(n + 1) wide, n layers deep a sum may be 3 sqrt(n).
@pytest.mark.parametrize(
    ("ways", "depth", "factor", "stops"),
    [
        (2, 1, 0.17, False),
        (2, 1, 0.18, True),
        (2, 2, 0.77, False),
        (2, 2, 0.79, True),
        (3, 1, 0.0, True),
        (3, 8, 0.0, True),
        (2, 8, 1.0, False),
    ],
)
def test_bypasses_stop_at_the_limit_of_growth_and_not_before(
    ways: int, depth: int, factor: float, stops: bool
) -> None:
    plan = binarize.plan(ready(Merge(ways, depth, factor)))
    last = [d for d in plan.layers if d.site.endswith(f".{depth - 1}")]
    assert len(last) == ways
    assert any("would grow" in d.reason for d in last) is stops


class Projected(nn.Module):
    def __init__(self, stride: int) -> None:
        super().__init__()
        self.a, self.b = conv(8, 16, stride=stride), conv(16, 16)
        self.down = conv(8, 16, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))) + self.down(x))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("policy", ["bidense", "bireal"])
def test_a_projection_has_its_role(stride: int, policy: str) -> None:
    plan = binarize.plan(ready(Line(layer=Projected(stride))), policy)
    roles = {d.site: d.roles for d in plan.layers}
    assert [site for site, each in roles.items() if "shortcut" in each] == ["layer.down"]
    if policy == "bireal":
        # Its rules keep projections.
        (down,) = [d for d in plan.layers if d.site == "layer.down"]
        assert down.action == "keep"


class Broken(nn.Module):
    """A branch whose norm carries no signal, beside a projection with or without a norm."""

    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        self.a, self.b, self.group = conv(8, 16, stride=2), conv(16, 16), nn.GroupNorm(2, 16)
        self.down, self.norm = conv(8, 16, 1, stride=2), norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(x)
        if self.norm is not None:
            y = self.norm(y)
        return F.relu(self.group(self.b(F.relu(self.a(x)))) + y)


@pytest.mark.parametrize("normed", [False, True])
def test_a_projection_that_becomes_a_bypass_loses_its_norm(normed: bool) -> None:
    layer = Broken(nn.BatchNorm2d(16) if normed else None)
    student = binarize.convert(ready(Line(layer=layer)))
    actions = {d.site: d.action for d in student.binarize_plan.layers}
    assert actions["layer.down"] == "bypass"
    assert not any(key.startswith(("layer.down", "layer.norm")) for key in student.state_dict())
    assert student(torch.randn(2, 3, 16, 16)).shape == (2, 2, 8, 8)


def test_a_projection_is_found_below_the_block_that_calls_it() -> None:
    # Its first name is elsewhere.
    layer = Projected(2)
    plan = binarize.plan(ready(Line(alias=layer.down, layer=layer)))
    assert [d.action for d in plan.additions] == ["drop"]


class Context(nn.Module):
    """The mean of an image next to its feature map; layers and a sigmoid follow much later."""

    def __init__(self, gates: bool) -> None:
        super().__init__()
        self.gates = gates
        self.context, self.mix, self.mask = conv(8, 8, 1), conv(16, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.context(F.adaptive_avg_pool2d(x, 1))
        if self.gates:
            return x * mean.sigmoid()
        y = torch.cat([x, mean.expand_as(x)], 1)
        y = F.relu(self.mix(y))
        return y * self.mask(y).sigmoid()


@pytest.mark.parametrize("gates", [True, False])
def test_a_vector_gates_if_a_vector_reaches_the_gate(gates: bool) -> None:
    plan = binarize.plan(ready(Line(layer=Context(gates))))
    (context,) = [d for d in plan.layers if d.site == "layer.context"]
    assert "vector" in context.roles
    assert ("gate" in context.roles) is gates


class Weighted(nn.Module):
    """Channels weighted by a binary linear layer, whichever operand comes first."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.conv, self.linear, self.after = conv(8, 8), nn.Linear(8, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        weights = self.linear(x.mean((2, 3)))[:, :, None, None]
        return self.after(F.relu(weights * x if self.first else x * weights))


@pytest.mark.parametrize("first", [True, False])
def test_a_weighted_map_keeps_its_channels_second(first: bool) -> None:
    model = ready(Line(layer=Weighted(first)))
    student = binarize.convert(
        model, example_inputs=torch.zeros(1, 3, 12, 12), overrides={"layer.linear": "binarize"}
    )
    (act,) = student.binarize_plan.activations
    assert (act.action, act.channels, act.channel_dim) == ("replace", 8, 1)
    assert student(torch.randn(2, 3, 16, 20)).shape == (2, 2, 16, 20)
