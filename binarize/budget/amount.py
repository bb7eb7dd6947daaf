"""A budget as a user writes it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from binarize.errors import BinarizeError

__all__ = ["Budget"]

_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_OPS = {"ops": 1, "kops": 10**3, "mops": 10**6, "gops": 10**9, "tops": 10**12}
_PERCENT = re.compile(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*%")
_AMOUNT = re.compile(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]+)")
_SHARE = re.compile(r"(drop|agreement)\s*=\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)")


@dataclass(frozen=True)
class Budget:
    """How much a network may cost, or lose.

    Attributes:
        kind: ``"bytes"`` of the file, ``"share"`` of the float network's file (see
            :meth:`of_file`), ``"ops"`` (effective operations, float + binary / 64),
            ``"drop"`` of the metric, or ``"agreement"`` with the float network's output.
        limit: At most so much; of ``"agreement"``, at least.
        text: As it was written.
    """

    kind: str
    limit: float
    text: str

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read a budget.

        Args:
            text: A size (``"3MB"``, ``"500kB"``, ``"2MiB"``), a share of the float network's file
                (``"10%"``), operations (``"5GOPs"``), what the
                metric may lose (``"drop=0.02"``), or the share of positions that has to be
                predicted as the float network does (``"agreement=0.9"``).

        Raises:
            BinarizeError: It is none of these.
        """
        given = text.strip() if isinstance(text, str) else ""
        if found := _AMOUNT.fullmatch(given):
            unit = found[2].lower()
            for kind, units in (("bytes", _SIZES), ("ops", _OPS)):
                if unit in units and (limit := _number(found[1])) is not None:
                    return cls(kind, limit * units[unit], given)
        if found := _PERCENT.fullmatch(given):
            percent = _number(found[1])
            if percent is not None and percent <= 100:
                return cls("share", percent / 100, given)
        if found := _SHARE.fullmatch(given):
            share = _number(found[2])
            if share is not None and (share <= 1 or found[1] == "drop"):
                return cls(found[1], share, given)
        raise BinarizeError(
            "budget",
            text,
            "is no size, number of operations, drop or agreement",
            "write for example '3MB', '500kB', '10%', '5GOPs', 'drop=0.02' or 'agreement=0.9'",
        )

    def of_file(self, size: int) -> Budget:
        """The same budget, a share turned into bytes of a file of ``size`` bytes."""
        if self.kind != "share":
            return self
        return Budget("bytes", self.limit * size, self.text)

    @property
    def is_cost(self) -> bool:
        """Whether it limits what the network costs, and not what it loses."""
        return self.kind in ("bytes", "ops")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
