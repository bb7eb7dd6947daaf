"""A plan holds for the size that it was made at, and says so."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize


class Pyramid(nn.Module):
    """Pools of several sizes: which of them leave one position depends on the input."""

    def __init__(self, globally: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 4, 1), nn.ReLU()
        )
        pools = [nn.AdaptiveAvgPool2d(1)] if globally else [nn.AvgPool2d(k, k) for k in (2, 4)]
        self.levels = nn.ModuleList(nn.Sequential(pool, nn.Conv2d(16, 16, 1)) for pool in pools)
        self.mix, self.head = (
            nn.Conv2d(16 * (1 + len(pools)), 16, 3, padding=1),
            nn.Conv2d(16, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        f = self.body(x)
        levels = [F.interpolate(level(f), f.shape[-2:]) for level in self.levels]
        return self.head(F.relu(self.mix(torch.cat([f, *levels], 1))))


def test_the_plan_and_its_reasons_say_the_size() -> None:
    plan = binarize.plan(Pyramid(), example_inputs=torch.zeros(1, 3, 64, 64))
    assert "1×3×64×64" in str(plan).splitlines()[0]
    layers = {d.site: d for d in plan.layers}
    assert layers["levels.1.1"].action == "keep"
    assert "one position at 64×64" in layers["levels.1.1"].reason
    assert layers["levels.0.1"].action == "binarize"
    plan = binarize.plan(Pyramid(), example_inputs=torch.zeros(1, 3, 128, 128))
    assert {d.site: d for d in plan.layers}["levels.1.1"].action == "binarize"


def test_a_global_pool_leaves_one_position_at_any_size() -> None:
    plan = binarize.plan(Pyramid(globally=True), example_inputs=torch.zeros(1, 3, 64, 64))
    (level,) = [d for d in plan.layers if d.site == "levels.0.1"]
    assert level.action == "keep"
    assert "64" not in level.reason
    assert "one position" not in level.reason


def test_only_a_layer_kept_for_its_single_position_says_so() -> None:
    x = torch.zeros(1, 3, 64, 64)
    plan = binarize.plan(Pyramid(), example_inputs=x, overrides={"levels.1.1": "binarize"})
    (level,) = [d for d in plan.layers if d.site == "levels.1.1"]
    assert level.action == "binarize"
    assert "vector" in level.roles
    assert "one position" not in level.reason


@pytest.mark.parametrize(
    ("planned", "used", "words"),
    [
        ((64, 64), (64, 64), None),
        ((64, 64), (80, 80), None),
        ((64, 64), (128, 128), "levels.1.1 would be binary"),
        ((64, 64), (64, 160), "levels.1.1 would be binary"),
        ((128, 128), (64, 64), "levels.1.1 would stay float"),
    ],
)
def test_the_report_tells_where_another_size_decides_otherwise(
    planned: tuple[int, int], used: tuple[int, int], words: str | None
) -> None:
    student = binarize.convert(Pyramid(), example_inputs=torch.zeros(1, 3, *planned))
    notes = binarize.report(student, torch.zeros(2, 3, *used)).notes
    told = [note for note in notes if "planned at" in note]
    assert len(told) == (words is not None)
    for line in told:
        assert words in line
        assert "×".join(map(str, used)) in line
    # Another batch alone is no other size.
    again = binarize.report(student, torch.zeros(3, 3, *planned)).notes
    assert not any("planned at" in note for note in again)


@pytest.mark.parametrize(("planned", "used"), [(64, 128), (128, 64)])
def test_a_policy_that_spares_no_single_position_has_no_note(planned: int, used: int) -> None:
    x = torch.zeros(1, 3, planned, planned)
    student = binarize.convert(Pyramid(), "bidense-released", example_inputs=x)
    notes = binarize.report(student, torch.zeros(1, 3, used, used)).notes
    assert not any("planned at" in note for note in notes)


@pytest.mark.parametrize(
    ("action", "planned", "used"), [("keep", 64, 128), ("keep", 128, 64), ("binarize", 128, 64)]
)
def test_a_layer_decided_by_name_has_no_note(action: str, planned: int, used: int) -> None:
    x = torch.zeros(1, 3, planned, planned)
    student = binarize.convert(Pyramid(), overrides={"levels.1.1": action}, example_inputs=x)
    notes = binarize.report(student, torch.zeros(1, 3, used, used)).notes
    assert not any("planned at" in note for note in notes)


class Linears(nn.Module):
    """A linear layer on as many positions as strides leave: of a feature map, or in a row."""

    def __init__(self, tokens: bool) -> None:
        super().__init__()
        self.tokens = tokens
        self.stem, self.mix = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 4, 4)
        self.linear, self.head = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(F.relu(self.stem(x))).permute(0, 2, 3, 1)
        if self.tokens:
            x = x.flatten(1, 2)
        return self.head(F.relu(self.linear(x)).flatten(1, -2).mean(1))


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize(("planned", "used"), [(16, 32), (32, 16)])
def test_linear_layers_have_positions_too(planned: int, used: int, tokens: bool) -> None:
    sizes = {n: torch.zeros(1, 3, n, n) for n in (planned, used)}
    before, after = (
        {d.site: d.action for d in binarize.plan(Linears(tokens), example_inputs=x).layers}
        for x in sizes.values()
    )
    student = binarize.convert(Linears(tokens), example_inputs=sizes[planned])
    notes = [n for n in binarize.report(student, sizes[used]).notes if "planned at" in n]
    # Over tokens it stays at any size.
    assert len(notes) == (before["linear"] != after["linear"]) == (not tokens)
    for note in notes:
        assert ("linear would be binary" if planned < used else "linear would stay float") in note


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_signals_and_volumes_have_sizes_too(rank: int) -> None:
    kind, pool = (getattr(nn, f"{name}{rank}d") for name in ("Conv", "AvgPool"))

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.level = kind(3, 8, 3, 2, 1), kind(8, 8, 1)
            self.mix, self.head = kind(8, 8, 3, padding=1), kind(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            f = F.relu(self.stem(x))
            f = f + F.interpolate(self.level(pool(4)(f)), f.shape[2:])
            return self.head(F.relu(self.mix(f)))

    small, large = (torch.zeros(1, 3, *(length,) * rank) for length in (8, 16))
    for planned, used, what in ((small, large, "binary"), (large, small, "float")):
        student = binarize.convert(Pooled(), example_inputs=planned)
        (note,) = [n for n in binarize.report(student, used).notes if "planned at" in n]
        assert re.search(rf"; at .* level would .*{what}", note)
        again = binarize.report(student, planned).notes
        assert not any("planned at" in note for note in again)
