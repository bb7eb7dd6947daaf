"""Budgets of several costs, and layers of 8 bits: against all choices there are."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.budget.amount import Budget
from binarize.budget.costs import before_and_after
from binarize.errors import BinarizeError
from binarize.latency import LayerLatency, Profile
from binarize.latency.measure import machine
from binarize.report import Sensitivity, SiteSensitivity

X = torch.randn(1, 3, 9, 11)
WIDTHS = (6, 14, 8, 11)


class Net(nn.Module):
    """A chain of convolutions that share nothing."""

    def __init__(self) -> None:
        super().__init__()
        pairs = itertools.pairwise((5, *WIDTHS))
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in WIDTHS)
        self.head = nn.Conv2d(WIDTHS[-1], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for conv, norm in zip(self.body, self.norms, strict=True):
            x = norm(conv(x)).relu()
        return self.head(x)


def made_up(seed: int) -> tuple[Profile, Sensitivity]:
    random = torch.Generator().manual_seed(seed)
    draw = torch.rand(len(WIDTHS), 5, generator=random).tolist()
    layers, sites = [], []
    for i, (a, b, c, loss, part) in enumerate(draw):
        times = {"binarize": 1 + a, "int8": 2 + b, "keep": 3 + 2 * c}
        layers.append(
            LayerLatency(f"body.{i}", "Conv2d", (1,), "binarize", times, dict.fromkeys(times, 0.0))
        )
        more = {"int8": {"distance": loss * part / 4, "disagreement": 0.0, "drop": None}}
        sites.append(
            SiteSensitivity(
                *(f"body.{i}", "Conv2d", (1,), "binarize", None, None, None, loss, None, 0.0, more)
            )
        )
    for name in ("stem", "head"):
        layers.append(LayerLatency(name, "Conv2d", (1,), "keep", {"keep": 1.0}, {"keep": 0.0}))
    profile = Profile("Net", "bidense", "", machine(), 1, tuple(layers), 0.0, {"keep": 30.0})
    rest: tuple[Any, ...] = (None,) * 5
    known = Sensitivity("Net", "bidense", "alone", False, *rest, 1, 1, len(sites), tuple(sites))
    return profile, known


def loss_of(actions: dict[str, str], known: Sensitivity) -> float:
    total = 0.0
    for row in known.sites:
        action = actions[row.site]
        total += {"keep": 0.0, "binarize": row.distance}.get(action) or (
            float(row.more["int8"]["distance"] or 0) if action == "int8" else 0.0
        )
    return total


@pytest.fixture(scope="module")
def sizes_of_all() -> dict[tuple[str, ...], int]:
    """Bytes of the file for each choice of actions, but for the float network."""
    names = [f"body.{i}" for i in range(len(WIDTHS))]
    sizes = {}
    for actions in itertools.product(("binarize", "int8", "keep"), repeat=len(names)):
        if set(actions) != {"keep"}:
            chosen = dict(zip(names, actions, strict=True))
            network = binarize.convert(Net().eval(), example_inputs=X, overrides=chosen)
            sizes[actions] = binarize.report(network).file_bytes
    return sizes


@pytest.mark.parametrize("seed", range(3))
def test_time_and_size_against_all_choices(
    seed: int, sizes_of_all: dict[tuple[str, ...], int]
) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    profile, known = made_up(seed)
    names = [f"body.{i}" for i in range(len(WIDTHS))]
    found = []
    for actions, size in sizes_of_all.items():
        chosen = dict(zip(names, actions, strict=True))
        found.append((loss_of(chosen, known), profile.predict(chosen), size))
    times, sizes = ([row[i] for row in found] for i in (1, 2))
    for share in (0.3, 0.6):
        limits = [min(v) + share * (max(v) - min(v)) for v in (times, sizes)]
        plan = binarize.plan(
            net,
            example_inputs=X,
            budget=f"{limits[0]}ms,{limits[1]:.0f}B",
            sensitivity=known,
            profile=profile,
            more_bits="int8",
        )
        actions = {d.site: d.action for d in plan.layers if d.site in names}
        network = binarize.convert(net, plan.policy, example_inputs=X)
        assert profile.predict(actions) <= limits[0] + 1e-9
        assert binarize.report(network).file_bytes <= limits[1]
        # Reasons are in the file too, so that its size is a little more than without.
        best = min(row[0] for row in found if row[1] <= limits[0] and row[2] <= limits[1] - 400)
        worst = loss_of(dict.fromkeys(names, "binarize"), known)
        assert loss_of(actions, known) <= best + 0.06 * (worst - best)


def test_time_alone_is_exact() -> None:
    net = Net().eval()
    profile, known = made_up(7)
    names = [f"body.{i}" for i in range(len(WIDTHS))]
    limit = profile.predict() + 2.5
    plan = binarize.plan(
        net,
        example_inputs=X,
        budget=f"{limit}ms",
        sensitivity=known,
        profile=profile,
        more_bits=["int8"],
    )
    actions = {d.site: d.action for d in plan.layers if d.site in names}
    choices = itertools.product(("binarize", "int8", "keep"), repeat=len(names))
    given = [dict(zip(names, each, strict=True)) for each in choices]
    best = min(loss_of(each, known) for each in given if profile.predict(each) <= limit)
    assert loss_of(actions, known) == pytest.approx(best)
    assert any("8 bits by the budget of" in d.reason for d in plan.layers) == (
        "int8" in actions.values()
    )


def test_8_bits_have_to_be_measured_first() -> None:
    profile, known = made_up(0)
    bare = replace(known, sites=tuple(replace(row, more={}) for row in known.sites))
    with pytest.raises(
        BinarizeError, match=r"^more_bits='int8': this needs the measured loss of body.0"
    ):
        binarize.plan(
            Net().eval(),
            example_inputs=X,
            budget="12ms",
            sensitivity=bare,
            profile=profile,
            more_bits="int8",
        )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("3MB,drop=0.1", "limits losses"),
        ("3MB,2MB", "limits the same quantity twice"),
        ("3MB,10%", "limits the same quantity twice"),
        ("12ms,time=10%", "limits the same quantity twice"),
    ],
)
def test_parts_that_do_not_go_together(text: str, rule: str) -> None:
    with pytest.raises(BinarizeError) as caught:
        Budget.parse(text)
    assert str(caught.value) == (
        f"budget={text!r}: a part of it {rule}; give it alone, or costs: '12ms,3MB'"
    )


def test_parts_are_read_one_by_one() -> None:
    kinds = [(b.kind, b.limit) for b in Budget.parse("12ms, 3MB,5GOPs")]
    assert kinds == [("time", 12), ("bytes", 3e6), ("ops", 5e9)]
    with pytest.raises(BinarizeError, match="is not a size"):
        Budget.parse("12ms,")


def test_unreachable_costs_say_what_is_reached() -> None:
    profile, known = made_up(0)
    with pytest.raises(BinarizeError, match=r"is \d+\.\d+ ms and \d+\.\d+ kB; give at"):
        binarize.plan(
            Net().eval(),
            example_inputs=X,
            budget="1ms,1kB",
            sensitivity=known,
            profile=profile,
            more_bits="int8",
        )


def test_costs_before_and_after_with_8_bits() -> None:
    """Counted on a network without storage."""
    net = Net().eval()
    plan = binarize.plan(net, example_inputs=X, overrides={"body.0": "int8", "body.1": "int8"})
    costs = before_and_after(net, plan, X)
    report = binarize.report(binarize.convert(net, plan.policy, example_inputs=X), X)
    assert costs["ops"] == report.ops
    assert costs["bytes"] == report.file_bytes
    assert report.int8_ops == 9 * 11 * 9 * (5 * 6 + 6 * 14)


@pytest.mark.parametrize(("tight", "loose"), [("bytes", "9s"), ("time", "9MB")])
def test_a_second_limit_that_nothing_reaches_changes_nothing(tight: str, loose: str) -> None:
    profile, known = made_up(3)
    for share in (0.3, 0.6, 0.9):
        amount = f"{7e3 + 9e3 * share:.0f}B" if tight == "bytes" else f"{7 + 9 * share:.2f}ms"
        one, two = (
            binarize.plan(
                Net(),
                example_inputs=X,
                budget=budget,
                sensitivity=known,
                more_bits=["int8"],
                profile=profile if "s" in budget else None,
            )
            for budget in (amount, f"{amount},{loose}")
        )
        assert [d.action for d in one.layers] == [d.action for d in two.layers]


def test_a_drop_out_of_reach_names_the_least_loss_with_8_bits() -> None:
    _, known = made_up(0)
    losses = {"body.0": 0.2, "body.1": 0.1, "body.2": 0.03, "body.3": 0.3}
    rows = tuple(
        replace(row, drop=losses[row.site], more={"int8": {"drop": losses[row.site] / 4}})
        for row in known.sites
    )
    with pytest.raises(BinarizeError, match=r"with only body\.2 binary, it is already 0\.0075;"):
        binarize.plan(
            Net(),
            example_inputs=X,
            budget="drop=0.001",
            sensitivity=replace(known, metric="mIoU", sites=rows),
            more_bits=["int8"],
        )
