"""The multiple-choice knapsack: choices that no other beats in both cost and value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Choice", "front"]

# With more choices, only the cheapest of those with nearly the same value is kept.
_WIDEST = 20_000


@dataclass(frozen=True)
class Choice:
    """Items of some groups, at most one of each.

    Attributes:
        cost: Sum of their costs.
        value: Sum of their values.
        last: Group of the item added last, and the item's index; ``None`` in the empty choice.
        rest: The choice that the item was added to.
    """

    cost: float
    value: float
    last: tuple[int, int] | None = None
    rest: Choice | None = None

    def items(self) -> dict[int, int]:
        """Return the index of the chosen item, for the groups that have one."""
        return dict(self._walk())

    def _walk(self) -> Iterator[tuple[int, int]]:
        choice: Choice | None = self
        while choice is not None and choice.last is not None:
            yield choice.last
            choice = choice.rest


def front(groups: Sequence[Sequence[tuple[float, float]]], widest: int = _WIDEST) -> list[Choice]:
    """Return all non-dominated choices of at most one item of each group.

    The multiple-choice knapsack for every budget at once, by dominance (Nemhauser and Ullmann,
    Discrete Dynamic Programming and Capital Allocation, Management Science 1969); with one item
    per group, it is the 0/1 knapsack. Exact for up to ``widest`` choices; with more, values are
    distinguished to 1 / ``widest`` of the largest, after each group.

    Args:
        groups: Cost and value of each item; a cost may be negative, a value not.
        widest: The maximum number of choices.

    Returns:
        The choices, in increasing order of cost and value; the first of equal ones.
    """
    choices = [Choice(0.0, 0.0)]
    for number, group in enumerate(groups):
        added = [
            Choice(c.cost + cost, c.value + value, (number, place), c)
            for place, (cost, value) in enumerate(group)
            for c in choices
        ]
        choices = _undominated(sorted([*choices, *added], key=lambda c: (c.cost, -c.value)))
        if len(choices) > widest:
            choices = _thinned(choices, widest)
    return choices


def _undominated(choices: Iterable[Choice]) -> list[Choice]:
    kept: list[Choice] = []
    for choice in choices:
        if not kept or choice.value > kept[-1].value:
            kept.append(choice)
    return kept


def _thinned(choices: Sequence[Choice], widest: int) -> list[Choice]:
    step = choices[-1].value / widest
    kept: dict[int, Choice] = {}
    for choice in choices:  # the cheapest comes first
        kept.setdefault(int(choice.value / step), choice)
    kept[-1] = choices[-1]  # the most valuable choice
    return _undominated(sorted(kept.values(), key=lambda c: (c.cost, -c.value)))
