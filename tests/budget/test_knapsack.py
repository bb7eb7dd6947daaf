"""The knapsack against trying everything."""

from __future__ import annotations

import itertools
import random

import pytest

from binarize.budget.knapsack import front

Item = tuple[float, float]


def single(items: list[Item]) -> list[list[Item]]:
    return [[item] for item in items]


def brute(groups: list[list[Item]], room: float) -> Item:
    """The largest value that fits, and the least cost of it."""
    best = (float("-inf"), 0.0)
    for taken in itertools.product(*([(0.0, 0.0), *group] for group in groups)):
        cost, value = (sum(column) for column in zip(*taken, strict=True))
        if cost <= room:
            best = max(best, (value, -cost))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_every_room_has_its_best_choice(seed: int) -> None:
    draw = random.Random(seed)
    # Integers, so that sums are exact in any order; some costs are negative, some values equal.
    sizes = [1] * 9 if seed % 2 else [1, 2, 3, 2, 3]
    groups = [[(draw.randint(-3, 30), draw.randint(0, 12)) for _ in range(size)] for size in sizes]
    choices = front(groups)
    for room in range(0, 150, 3):
        found = [c for c in choices if c.cost <= room][-1]
        assert (found.value, -found.cost) == brute(groups, room)
        taken = [groups[group][place] for group, place in found.items().items()]
        assert sum(cost for cost, _ in taken) == found.cost
        assert sum(value for _, value in taken) == found.value


def test_cost_and_value_rise_together() -> None:
    draw = random.Random(0)
    choices = front(single([(draw.random(), draw.random()) for _ in range(12)]))
    for one, next_ in itertools.pairwise(choices):
        assert one.cost < next_.cost
        assert one.value < next_.value


def test_what_costs_nothing_or_less_is_always_taken() -> None:
    choices = front(single([(5, 1), (-2, 0), (0, 3), (4, 0)]))
    assert set(choices[0].items()) in ({1, 2}, {1})
    assert all(3 not in choice.items() for choice in choices)
    assert set(choices[-1].items()) == {0, 1, 2}


def test_the_empty_knapsack() -> None:
    (only,) = front([])
    assert (only.cost, only.value, only.items()) == (0, 0, {})


def test_many_items_are_nearly_exact() -> None:
    draw = random.Random(1)
    items = single([(draw.random(), draw.random()) for _ in range(24)])
    exact, narrow = front(items), front(items, widest=60)
    assert len(narrow) <= 62 < len(exact)
    assert narrow[-1].items() == exact[-1].items()
    for room in (1.0, 3.0, 5.0):
        best = max(c.value for c in exact if c.cost <= room)
        found = max(c.value for c in narrow if c.cost <= room)
        assert best * 0.8 < found <= best
