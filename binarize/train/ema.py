"""A running average of a network's weights, which often does better than the last of them."""

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

    After update n the average moves by 1 − min(``decay``, (1 + n)/(10 + n)) to the weights: at
    first it follows quickly, and forgets the start. Norm statistics are averaged too, as they
    belong to the weights.

    Args:
        network: The network.
        decay: Share of the average that stays, between 0 and 1.

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
        """The network's own tensors that are averaged, by name."""
        state = self.network.state_dict()
        return {name: value for name, value in state.items() if value.is_floating_point()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of now into the average."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in self.live().items():
            self.average[name].lerp_(value.to(self.average[name].dtype), 1 - keep)

    @torch.no_grad()
    def copy_to_network(self) -> None:
        """Give the network the averaged weights."""
        for name, value in self.live().items():
            value.copy_(self.average[name])

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold."""
        return {"updates": self.updates, "average": self.average}

    def load(self, state: dict[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)


@contextmanager
def applied(average: WeightAverage | None) -> Iterator[None]:
    """Let the network have the averaged weights for a while, if there is an average."""
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
