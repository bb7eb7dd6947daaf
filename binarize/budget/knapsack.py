"""Which choices for layers are worth a look: those that no other beats in both cost and value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Choice", "front"]

# Beyond so many, of choices of nearly the same value only the cheapest is kept.
_WIDEST = 20_000


@dataclass(frozen=True)
class Choice:
    """Items of some groups, one of each at most.

    Attributes:
        cost: Sum of their costs.
        value: Sum of their values.
        last: Group and place in it of the item added last; ``None`` in the empty choice.
        rest: The choice that it was added to.
    """

    cost: float
    value: float
    last: tuple[int, int] | None = None
    rest: Choice | None = None

    def items(self) -> dict[int, int]:
        """Group to place of the item in it, for the groups that something is taken of."""
        return dict(self._walk())

    def _walk(self) -> Iterator[tuple[int, int]]:
        choice: Choice | None = self
        while choice is not None and choice.last is not None:
            yield choice.last
            choice = choice.rest


def front(groups: Sequence[Sequence[tuple[float, float]]], widest: int = _WIDEST) -> list[Choice]:
    """All choices of one item at most of each group than which none is cheaper and worth more.

    The multiple-choice knapsack for every budget at once, by dominance (Nemhauser and Ullmann,
    Discrete Dynamic Programming and Capital Allocation, Management Science 1969); with one item a
    group it is the 0/1 knapsack. Exact as long as there are no more than ``widest`` choices in it;
    beyond, values are told apart to 1 / ``widest`` of the largest, after each group.

    Args:
        groups: Cost and value of each item; a cost may be negative, a value not.
        widest: How many choices are kept.

    Returns:
        The choices, cost and value rising; of equals only the first.
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
    kept[-1] = choices[-1]  # everything that is worth something
    return _undominated(sorted(kept.values(), key=lambda c: (c.cost, -c.value)))
