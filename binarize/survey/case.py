"""One network of a survey, and which of them are examined first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from binarize.errors import ModelError

__all__ = ["WILD", "Case", "select", "spread"]

# Networks from user files.
WILD = "wild"


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        library: ``WILD``, or the library that it comes from.
        family: Its group: the file of its factory.
        name: The network's name: ``FILE.py:FACTORY``.
        variant: In which of several ways it is built; empty for the usual one.
        sample: Whether it is also run with real weights.
        shape: Shape of an image that it takes, (1, C, *spatial), where sizes of the network's own
            settings and usual ones do not fit.
    """

    library: str
    family: str
    name: str
    variant: str = ""
    sample: bool = False
    shape: tuple[int, ...] | None = None

    @property
    def key(self) -> str:
        """Its name in the survey, which patterns match."""
        short = {"segmentation_models_pytorch": "smp"}.get(self.library, self.library)
        return f"{short}:{self.name}" + (f"+{self.variant}" if self.variant else "")


def select(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """Keep the cases that one of the patterns matches.

    Args:
        cases: The cases.
        patterns: As in ``fnmatch``, against the key or the family; all cases if there is
            none.

    Raises:
        ModelError: A pattern matches nothing.
    """
    if not patterns:
        return list(cases)
    for pattern in patterns:
        if not any(_matches(case, pattern) for case in cases):
            raise ModelError(
                "pattern",
                pattern,
                f"none of the {len(cases)} networks matches it",
                f"give a name such as {cases[0].key!r}, or a family such as {cases[0].family!r}",
            )
    return [case for case in cases if any(_matches(case, pattern) for pattern in patterns)]


def spread(cases: Sequence[Case]) -> list[Case]:
    """Order cases so that an interrupted survey covers every family.

    Args:
        cases: The cases.

    Returns:
        The samples, then the first of each family, the second, ...
    """
    counts: dict[tuple[str, str], int] = defaultdict(int)
    ranks = []
    for case in cases:
        counts[case.library, case.family] += 1
        ranks.append((not case.sample, counts[case.library, case.family]))
    order = sorted(range(len(cases)), key=lambda i: ranks[i])
    return [cases[i] for i in order]


def _matches(case: Case, pattern: str) -> bool:
    return fnmatchcase(case.key, pattern) or fnmatchcase(case.family, pattern)
