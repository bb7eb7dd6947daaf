"""Which choices of layers are worth a look: those that no other beats in both cost and value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Choice", "front"]

# Beyond so many, of choices of nearly the same value only the cheapest is kept.
_WIDEST = 20_000


@dataclass(frozen=True)
class Choice:
    """Some of the items, by number.

    Attributes:
        cost: Sum of their costs.
        value: Sum of their values.
        last: The item added last; ``None`` in the empty choice.
        rest: The choice that it was added to.
    """

    cost: float
    value: float
    last: int | None = None
    rest: Choice | None = None

    def items(self) -> frozenset[int]:
        """The items."""
        return frozenset(self._walk())

    def _walk(self) -> Iterator[int]:
        choice: Choice | None = self
        while choice is not None and choice.last is not None:
            yield choice.last
            choice = choice.rest


def front(items: Sequence[tuple[float, float]], widest: int = _WIDEST) -> list[Choice]:
    """All choices of items than which none is both cheaper and worth more.

    The 0/1 knapsack for every budget at once, by dominance (Nemhauser and Ullmann, Discrete
    Dynamic Programming and Capital Allocation, Management Science 1969). Exact as long as there
    are no more than ``widest`` choices in it; beyond, values are told apart to 1 / ``widest`` of
    the largest, after each item.

    Args:
        items: Cost and value of each; a cost may be negative, a value not.
        widest: How many choices are kept.

    Returns:
        The choices, cost and value rising; of equals only the first.
    """
    choices = [Choice(0.0, 0.0)]
    for number, (cost, value) in enumerate(items):
        added = [Choice(c.cost + cost, c.value + value, number, c) for c in choices]
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
