"""Residual blocks that scale their branch or their sum: the signal keeps its size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.graph import Traced
from binarize.nn import BinaryLayer
from binarize.policy import load_policy

CHANNELS = 8
Join = Callable[[nn.Module, Tensor, Tensor], Tensor]


def by_statement(_m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    y = y.mul_(0.2)
    y += x
    return y


# How a block joins its input x with its branch's result y.
FORMS: dict[str, Join] = {
    "x + y": lambda _m, x, y: x + y,
    "y * 0.2 + x": lambda _m, x, y: y * 0.2 + x,
    "x + 0.2 * y": lambda _m, x, y: x + 0.2 * y,
    "x + y.mul(0.2)": lambda _m, x, y: x + y.mul(0.2),
    "x + torch.mul(y, 0.2)": lambda _m, x, y: x + torch.mul(y, 0.2),
    "x + y / 5": lambda _m, x, y: x + y / 5,
    "torch.add(x, y, alpha=0.2)": lambda _m, x, y: torch.add(x, y, alpha=0.2),
    "y.add(x, alpha=0.7)": lambda _m, x, y: y.add(x, alpha=0.7),
    "0.5 * (x + y)": lambda _m, x, y: 0.5 * (x + y),
    "(y + x) / 2": lambda _m, x, y: (y + x) / 2,
    "(x + y).div(2 ** 0.5)": lambda _m, x, y: (x + y).div(2**0.5),
    "(x + 0.2 * y) * 0.5": lambda _m, x, y: (x + 0.2 * y) * 0.5,
    "0.7 * x + 0.3 * y": lambda _m, x, y: 0.7 * x + 0.3 * y,
    "torch.lerp(x, y, 0.2)": lambda _m, x, y: torch.lerp(x, y, 0.2),
    "y.lerp(x, 0.3)": lambda _m, x, y: y.lerp(x, 0.3),
    "x + y * gamma": lambda m, x, y: x + y * m.gamma,
    "gamma.view(-1, 1, 1) * y + x": lambda m, x, y: m.gamma.view(-1, 1, 1) * y + x,
    "y.mul_(0.2).add_(x)": lambda _m, x, y: y.mul_(0.2).add_(x),
    "y.mul_(0.2); y += x": by_statement,
    "x - y": lambda _m, x, y: x - y,
    "x - 0.2 * y": lambda _m, x, y: x - 0.2 * y,
}


class Block(nn.Module):
    def __init__(self, form: str, norm: bool, depth: int) -> None:
        super().__init__()
        self.form = form
        self.gamma = nn.Parameter(
            torch.full((1,), 0.2) if "view" not in form else torch.ones(8) / 5
        )
        if depth:
            self.body = nn.Sequential(*(Block(form, norm, depth - 1) for _ in range(2)))
        else:
            parts = [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(2)]
            norms = [nn.BatchNorm2d(CHANNELS) if norm else nn.Identity() for _ in range(2)]
            self.body = nn.Sequential(parts[0], norms[0], parts[1], norms[1])

    def forward(self, x: Tensor) -> Tensor:
        return FORMS[self.form](self, x, self.body(x))


class Net(nn.Module):
    def __init__(self, form: str, norm: bool, depth: int, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(form, norm, depth) for _ in range(blocks)))
        self.head = nn.Conv2d(CHANNELS, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


def without_units(student: nn.Module) -> None:
    """Leave of every binary layer its bypass, if it has one."""
    for module in student.modules():
        if isinstance(module, BinaryLayer):
            nn.init.zeros_(module.norm.weight)
            nn.init.zeros_(module.norm.bias)


def expected(block: nn.Module, actions: dict[str, str], name: str, x: Tensor) -> Tensor:
    """What a block without its units' own parts hands on, by the plan's word."""
    if isinstance(block.body[0], nn.Conv2d | BinaryLayer):
        branch = x if actions[name] == "drop" else torch.zeros_like(x)
    else:
        branch = x
        for number, inner in enumerate(block.body):
            branch = expected(inner, actions, f"{name}.body.{number}", branch)
    return branch if actions[name] == "drop" else FORMS[block.form](block, x, branch.clone())


@pytest.mark.parametrize(
    ("form", "norm", "depth"),
    [(form, True, d) for form, d in itertools.product(FORMS, (0, 1))]
    + [("x + y", False, 0), ("0.5 * (x + y)", False, 0), ("torch.lerp(x, y, 0.2)", False, 1)],
)
def test_the_bypass_alone_hands_the_signal_on(form: str, norm: bool, depth: int) -> None:
    torch.manual_seed(0)
    model = Net(form, norm, depth)
    student = binarize.convert(model).eval()
    plan = student.binarize_plan
    actions = {d.scope: d.action for d in plan.additions}
    # One decision for each place, or rewriting looks for what is gone.
    places = [(d.part, d.scope, d.ordinal) for d in plan.decisions if d.part != "layer"]
    assert len(set(places)) == len(places)
    if " - " in form:
        assert set(actions.values()) == {"keep"}
    elif not depth:
        assert set(actions.values()) == {"drop"}
    without_units(student)
    x = torch.randn(2, CHANNELS, 8, 8)
    for number, block in enumerate(student.blocks):
        name = f"blocks.{number}"
        with torch.no_grad():
            got, wanted = block(x.clone()), expected(block, actions, name, x)
        assert torch.allclose(got, wanted, atol=1e-6), (form, name, actions)


@pytest.mark.parametrize("form", FORMS)
def test_the_signal_neither_doubles_nor_fades(form: str) -> None:
    torch.manual_seed(0)
    student = binarize.convert(Net(form, True, 1, blocks=6)).train()
    found: list[float] = []
    for module in student.modules():
        if isinstance(module, BinaryLayer):
            module.register_forward_hook(lambda _m, _a, out: found.append(out.std().item()))
    with torch.no_grad():
        student(torch.randn(2, 3, 16, 16))
    assert len(found) == 24
    assert all(width <= 3 * math.sqrt(n) for n, width in enumerate(found, start=1)), found
    assert found[-1] > 0.1


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


class SharedScale(nn.Module):
    """One factor for a block that carries and for one whose branch a norm breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.scale = nn.GroupNorm(2, 8), Scale()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.scale(self.a(x))
        return self.head(x + self.scale(self.norm(self.b(x))))


def test_a_factor_that_stays_keeps_its_addition() -> None:
    plan = binarize.plan(SharedScale())
    assert [d.action for d in plan.additions] == ["keep", "keep"]
    assert not plan.scales
    (first,) = [d for d in plan.layers if d.site == "a"]
    assert not first.carries


class MeanElsewhere(nn.Module):
    """The sum is used at its own size too, or the mean is made by the caller."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.inner = Block("x + y", True, 0)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.way == "caller":
            return self.head(0.5 * self.inner(x))
        total = x + self.conv(x)
        return self.head(torch.relu(0.5 * total) + total)


@pytest.mark.parametrize("way", ["caller", "elsewhere"])
def test_a_mean_that_others_see(way: str) -> None:
    student = binarize.convert(MeanElsewhere(way)).eval()
    plan = student.binarize_plan
    if way == "caller":
        assert [(d.scope, d.action) for d in plan.scales] == [("", "drop")]
        without_units(student)
        x = torch.randn(1, 3, 8, 8)
        assert torch.allclose(student(x), student.head(student.stem(x)), atol=1e-6)
    else:
        assert not plan.scales


def test_a_reciprocal_is_no_factor() -> None:
    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(x + 1.0 / (self.conv(x).abs() + 1.0))

    student = binarize.convert(Inverse())
    assert [d.action for d in student.binarize_plan.additions] == ["keep"]
    assert student(torch.randn(1, 3, 8, 8)).shape == (1, 2, 8, 8)


@pytest.mark.parametrize("name", ["add", "relu", "mul"])
def test_an_argument_named_like_an_operation_is_none(name: str) -> None:
    source = f"def forward(self, {name}): return torch.relu(self.norm(self.conv({name})) + {name})"
    made: dict[str, Any] = {}
    exec(source, {"torch": torch}, made)

    class Block(nn.Module):
        forward = made["forward"]

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    network = nn.Sequential(nn.Conv2d(3, 8, 3), Block(), nn.Conv2d(8, 2, 1)).eval()
    plan = binarize.plan(network, example_inputs=torch.zeros(1, 3, 9, 9))
    assert not plan.opaque
    (addition,) = plan.additions
    assert addition.action == "drop"
    student = binarize.convert(network, example_inputs=torch.zeros(1, 3, 9, 9)).eval()
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad():
        carried = student[1].conv(student[0](x))
        torch.testing.assert_close(student(x), student[2](student[1].prelu_0(carried)))


def test_a_forward_that_differs_in_training_is_planned_again_and_again() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.dropout(self.norm(self.conv(x)), 0.5, self.training)
            return torch.relu(y + x)

    network = nn.Sequential(nn.Conv2d(3, 8, 3), Block(), nn.Conv2d(8, 2, 1)).eval()
    traced = Traced(network, torch.zeros(2, 3, 9, 9))
    plans = [traced.plan(load_policy("bidense")) for _ in range(2)]
    assert plans[0].to_dict() == plans[1].to_dict()
    assert [d.action for d in plans[0].additions] == ["drop"]
    x = torch.randn(2, 3, 9, 9)
    for mode in (False, True):
        results = []
        for plan in plans:
            torch.manual_seed(0)
            results.append(traced.convert(plan).train(mode)(x))
        torch.testing.assert_close(*results)
