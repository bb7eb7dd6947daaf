"""Randomness that depends only on the place in a run: seed, epoch, step, process, sample."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["sample_seed", "seed_epoch", "seed_step", "seeded"]

# A seed's purpose. SeedSequence pads with zeros, so these also separate sequences by length.
_STEP, _SAMPLE = 1, 2


def seed_epoch(seed: int, epoch: int, process: int, loader: Any) -> None:
    """Seed every generator that an epoch uses.

    A run that resumes before epoch k then draws the same numbers as an uninterrupted run in epoch
    k, without storing generator states. Shuffling has the same seed in all processes, each of
    which takes its part of one order.

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch.
        process: Index of the process.
        loader: The user's data loader. The generators of it and of its samplers are seeded too, a
            sampler without one gets one, and samplers that follow the epoch are set to it.
    """
    shared, own = (
        int(word) for word in np.random.SeedSequence([seed, epoch]).generate_state(2, np.uint64)
    )
    _seed_all((own + process * 0x9E3779B97F4A7C15) % 2**63)
    samplers = _samplers(loader)
    for sampler in samplers:
        if getattr(sampler, "generator", 0) is None:
            # With its own generator, the order is the same for any number of processes.
            sampler.generator = torch.Generator()
    generators = {
        id(generator): generator
        for generator in (getattr(owner, "generator", None) for owner in (loader, *samplers))
        if isinstance(generator, torch.Generator)
    }
    for generator in generators.values():
        generator.manual_seed(shared % 2**63)
    for sampler in samplers:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)


def seed_step(seed: int, epoch: int, step: int, process: int) -> None:
    """Seed a network's randomness in one step (dropout), differently in each process."""
    words = np.random.SeedSequence([seed, epoch, step, process, _STEP]).generate_state(1, np.uint64)
    _seed_all(int(words[0]) % 2**63)


def sample_seed(seed: int, epoch: int, index: Any) -> int:
    """Return the seed of one sample, independent of reader and order."""
    key = int(index) % 2**63 if isinstance(index, int) else zlib.crc32(repr(index).encode())
    words = np.random.SeedSequence([seed, epoch, key, _SAMPLE]).generate_state(1, np.uint64)
    return int(words[0]) % 2**63


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, NumPy and torch (CPU) inside this context, and restore them afterwards."""
    # Not torch.manual_seed: device generators belong to the networks.
    kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        torch.set_rng_state(kept[2])


def _seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _samplers(loader: Any) -> list[Any]:
    """Return the loader's samplers without duplicates."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = (
        getattr(loader, "sampler", None),
        batch_sampler,
        getattr(batch_sampler, "sampler", None),
    )
    return list({id(sampler): sampler for sampler in found if sampler is not None}.values())
