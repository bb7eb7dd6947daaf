"""What was measured about a version, and how versions compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

__all__ = ["Measured", "relative_speed"]


@dataclass(frozen=True)
class Measured:
    """What was measured about one version; ``None`` where something is not known.

    Attributes:
        name: The version's name.
        summary: What it is.
        images: Images per call.
        seconds: Seconds per call, one for each round; empty if it does not run.
        peak_bytes: Largest resident memory of a process that starts, loads and runs it.
        idle_bytes: What of it Python and the libraries have, before there is a network.
        file_bytes: Size of its file.
        failure: Why it does not run; empty if it does.
    """

    name: str
    summary: str
    images: int
    seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    idle_bytes: int | None = None
    file_bytes: int | None = None
    failure: str = ""

    @property
    def latency(self) -> float | None:
        """Median of the seconds per call."""
        return median(self.seconds) if self.seconds else None

    @property
    def quartiles(self) -> tuple[float, float] | None:
        """Between these two lie the middle half of the seconds per call."""
        if len(self.seconds) < 2:
            return (self.seconds[0], self.seconds[0]) if self.seconds else None
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def throughput(self) -> float | None:
        """Images per second, by the median."""
        return None if self.latency is None else self.images / self.latency

    def to_dict(self, base: Measured | None = None) -> dict[str, Any]:
        """Plain data for JSON; ``speedup`` is against the version ``base``."""
        return {
            "name": self.name,
            "summary": self.summary,
            "latency": self.latency,
            "quartiles": None if self.quartiles is None else list(self.quartiles),
            "images_per_second": self.throughput,
            "speedup": None if base is None else relative_speed(base.seconds, self.seconds),
            "peak_bytes": self.peak_bytes,
            "idle_bytes": self.idle_bytes,
            "file_bytes": self.file_bytes,
            "failure": self.failure or None,
            "seconds": list(self.seconds),
        }


def relative_speed(base: Sequence[float], other: Sequence[float]) -> float | None:
    """How many times faster ``other`` is: the median of the rounds' ratios, ``None`` if unknown.

    Both were timed in the same rounds, so that a slow moment of the machine cancels out.
    """
    ratios = [a / b for a, b in zip(base, other, strict=False) if b > 0]
    return median(ratios) if ratios else None
