"""Randomness that depends on the seed, the epoch and the process, and on nothing else."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import RandomSampler

__all__ = ["seed_epoch"]


def seed_epoch(seed: int, epoch: int, process: int, loader: Any) -> None:
    """Seed every generator that an epoch draws from.

    A run that resumes before epoch k then draws what an uninterrupted run draws in epoch k,
    without any state of generators being stored. Shuffling is seeded alike in all processes,
    which each take their part of one order.

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch.
        process: Index of the process.
        loader: The data loader; the generators of it and of its sampler are seeded too, and a
            random sampler without one gets one.
    """
    shared, own = (
        int(word) for word in np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64)
    )
    own = (own + process * 0x9E3779B97F4A7C15) % 2**63
    random.seed(own)
    np.random.seed(own % 2**32)
    torch.manual_seed(own)
    sampler: Any = getattr(loader, "sampler", None)
    if isinstance(sampler, RandomSampler) and sampler.generator is None:
        # Its own generator makes the order the same for any number of processes.
        sampler.generator = torch.Generator()
    generators = {
        id(generator): generator
        for generator in (getattr(loader, "generator", None), getattr(sampler, "generator", None))
        if isinstance(generator, torch.Generator)
    }
    for generator in generators.values():
        generator.manual_seed(shared % 2**63)
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
