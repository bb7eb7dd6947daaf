"""Parse budgets."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from binarize.errors import BinarizeError

__all__ = ["Budget"]

_SIZES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_OPS = {"ops": 1, "kops": 10**3, "mops": 10**6, "gops": 10**9, "tops": 10**12}
_TIMES = {"us": 1e-3, "ms": 1, "s": 1e3}
_TIME_SHARE = re.compile(r"time\s*=\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*%")
_PERCENT = re.compile(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*%")
_AMOUNT = re.compile(r"([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]+)")
_SHARE = re.compile(r"(drop|agreement)\s*=\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)")


@dataclass(frozen=True)
class Budget:
    """A limit on what a network may cost or lose.

    Attributes:
        kind: ``"bytes"`` of the file, ``"share"`` of the float network's file, ``"ops"``
            (effective operations, float + 8-bit / 8 + binary / 64), ``"time"`` (milliseconds,
            packed), ``"time share"`` of the float network's, ``"drop"`` of the metric, or
            ``"agreement"`` with the float network's output. For shares, see :meth:`of`.
        limit: The maximum; for ``"agreement"``, the minimum.
        text: The budget as written.
    """

    kind: str
    limit: float
    text: str

    @classmethod
    def parse(cls, text: str) -> tuple[Budget, ...]:
        """Parse a budget, or several separated by commas.

        Args:
            text: A size (``"3MB"``, ``"500kB"``, ``"2MiB"``), a share of the float network's file
                (``"10%"``), operations (``"5GOPs"``), a latency (``"12ms"``) or a share of the
                float network's (``"time=40%"``), the permitted loss of the metric
                (``"drop=0.02"``), or the share of positions whose prediction must agree with the
                float network's (``"agreement=0.9"``).

        Raises:
            BinarizeError: One is invalid, two limit the same quantity, or a limit on losses is
                combined with others.
        """
        parts = text.split(",") if isinstance(text, str) else [text]
        budgets = tuple(cls._one(part) for part in parts)
        kinds = [budget.kind.partition(" ")[0].replace("share", "bytes") for budget in budgets]
        losses = [budget for budget in budgets if not budget.is_cost]
        if len(budgets) > 1 and (losses or len(set(kinds)) < len(kinds)):
            rule = "limits losses" if losses else "limits the same quantity twice"
            raise BinarizeError(
                "budget", text, f"a part of it {rule}", "give it alone, or costs: '12ms,3MB'"
            )
        return budgets

    @classmethod
    def _one(cls, text: str) -> Budget:
        given = text.strip() if isinstance(text, str) else ""
        if found := _AMOUNT.fullmatch(given):
            unit = found[2].lower()
            for kind, units in (("bytes", _SIZES), ("ops", _OPS), ("time", _TIMES)):
                if unit in units and (limit := _number(found[1])) is not None:
                    return cls(kind, limit * units[unit], given)
        for kind, form in (("share", _PERCENT), ("time share", _TIME_SHARE)):
            if found := form.fullmatch(given):
                percent = _number(found[1])
                if percent is not None and percent <= 100:
                    return cls(kind, percent / 100, given)
        if found := _SHARE.fullmatch(given):
            share = _number(found[2])
            if share is not None and (share <= 1 or found[1] == "drop"):
                return cls(found[1], share, given)
        raise BinarizeError(
            "budget",
            text,
            "is not a size, number of operations, latency, drop or agreement",
            "write for example '3MB', '10%', '5GOPs', '12ms', 'time=40%', '12ms,3MB', 'drop=0.02' "
            "or 'agreement=0.9'",
        )

    def of(self, size: int, latency: float | None) -> Budget:
        """Return the same budget with a share converted to an amount.

        Args:
            size: Bytes of the float network's file.
            latency: Milliseconds of the float network, if known.
        """
        if self.kind == "time share" and latency is not None:
            return Budget("time", self.limit * latency, self.text)
        return Budget("bytes", self.limit * size, self.text) if self.kind == "share" else self

    @property
    def is_cost(self) -> bool:
        """Whether it limits the network's costs rather than its losses."""
        return self.kind in ("bytes", "ops", "time", "share", "time share")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None
