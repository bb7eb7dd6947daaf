"""Time several versions side by side, so that other load slows all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

__all__ = ["time_interleaved"]


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    least: float = 0.02,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """Time calls interleaved: each round times each of them once, in rotating order.

    Args:
        calls: The calls by name. Each runs twice first, to warm up.
        rounds: Number of rounds.
        least: Minimum seconds per timing; short calls are repeated and averaged.
        tell: Called with rounds done and total rounds.

    Returns:
        Seconds per call, one number per round.
    """
    clock = time.perf_counter
    repeats = {}
    for name, call in calls.items():
        call()
        started = clock()
        call()
        repeats[name] = max(1, math.ceil(least / max(clock() - started, 1e-9)))
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for done in range(rounds):
        start = done % max(len(names), 1)
        for name in names[start:] + names[:start]:
            call, count = calls[name], repeats[name]
            started = clock()
            for _ in range(count):
                call()
            seconds[name].append((clock() - started) / count)
        tell(done + 1, rounds)
    return seconds
