"""How the weight of a distillation loss changes over the training."""

from __future__ import annotations

import math

__all__ = ["SCHEDULES", "anneal"]

SCHEDULES = ("constant", "linear", "cosine")


def anneal(schedule: str, done: float) -> float:
    """Return the weight's factor at training progress ``done``: 1 at first, 0 at the end."""
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done))
