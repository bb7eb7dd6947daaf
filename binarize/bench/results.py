"""Measurements of a version, and comparison of versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

__all__ = ["Measured", "relative_speed"]


@dataclass(frozen=True)
class Measured:
    """Measurements of one version; ``None`` where unknown.

    Attributes:
        name: The version's name.
        summary: A short description.
        images: Images per call.
        seconds: Seconds per call, one per round; empty if it does not run.
        peak_bytes: Peak resident memory of a process that starts, loads and runs it.
        idle_bytes: The part of it that Python and the libraries take without a network.
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
        """First and third quartile of the seconds per call."""
        if len(self.seconds) < 2:
            return (self.seconds[0], self.seconds[0]) if self.seconds else None
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def throughput(self) -> float | None:
        """Images per second, from the median."""
        return None if self.latency is None else self.images / self.latency

    def to_dict(self, base: Measured | None = None) -> dict[str, Any]:
        """Return plain data for JSON; ``speedup`` is relative to the version ``base``."""
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
    """Return how many times faster ``other`` is, by the median of the rounds' ratios, or ``None``.

    Both were timed in the same rounds, so that slow phases of the machine cancel out.
    """
    ratios = [a / b for a, b in zip(base, other, strict=False) if b > 0]
    return median(ratios) if ratios else None
