"""A running average of a network's weights, which often beats the final weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError

__all__ = ["WeightAverage", "applied"]


class WeightAverage:
    """Exponential moving average of parameters and floating buffers, in single precision or wider.

    Update n moves the average by 1 − min(``decay``, (1 + n)/(10 + n)) towards the weights: it
    follows quickly at first, to forget the initial weights. Norm statistics are averaged too,
    because they belong to the weights.

    Args:
        network: The network.
        decay: Fraction of the average that is kept, between 0 and 1.

    Raises:
        BinarizeError: The decay is not between 0 and 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise BinarizeError("ema", decay, "must be between 0 and 1", "use e.g. 0.999")
        self.network = network
        self.decay = decay
        self.updates = 0
        self.average = {name: _wide(value) for name, value in self.live().items()}

    def live(self) -> dict[str, Tensor]:
        """Return the network's tensors that are averaged, by name."""
        state = self.network.state_dict()
        return {name: value for name, value in state.items() if value.is_floating_point()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in self.live().items():
            self.average[name].lerp_(value.to(self.average[name].dtype), 1 - keep)

    @torch.no_grad()
    def copy_to_network(self) -> None:
        """Copy the averaged weights into the network."""
        for name, value in self.live().items():
            value.copy_(self.average[name])

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"updates": self.updates, "average": self.average}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)


@contextmanager
def applied(average: WeightAverage | None) -> Iterator[None]:
    """Use the averaged weights inside this context, if there is an average."""
    if average is None:
        yield
        return
    kept = {name: value.clone() for name, value in average.live().items()}
    average.copy_to_network()
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in average.live().items():
                value.copy_(kept[name])


def _wide(value: Tensor) -> Tensor:
    value = value.detach()
    return value.float().clone() if value.element_size() < 4 else value.clone()
