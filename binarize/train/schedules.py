"""What changes over a run: averaged weights, flipped signs, two-step training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError, ModelError

__all__ = ["Flips", "TwoSteps", "WeightAverage", "applied"]


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


class Flips:
    """Fraction of binary weights whose sign has changed since the last measurement, per layer.

    If hardly any sign changes, training has converged or the learning rate is too low; many changes
    until the end mean that it is too high. Covers layers with a ``binary_weight`` method.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers: dict[str, Any] = {
            name: module
            for name, module in network.named_modules()
            if callable(getattr(module, "binary_weight", None))
        }
        self.bits = {name: _bits(layer) for name, layer in self.layers.items()}

    def measure(self) -> dict[str, Any]:
        """Return ``flip_ratio`` over all layers and ``flips`` per layer, and start over."""
        changed: dict[str, int] = {}
        counts: dict[str, int] = {}
        for name, layer in self.layers.items():
            now = _bits(layer)
            changed[name] = _ones(now ^ self.bits[name].to(now.device))
            counts[name] = _count(layer)
            self.bits[name] = now
        flips = {name: changed[name] / max(1, counts[name]) for name in self.layers}
        ratio = sum(changed.values()) / max(1, sum(counts.values()))
        return {"flip_ratio": ratio, "flips": flips}

    def state(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        return dict(self.bits)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state of a checkpoint."""
        self.bits.update(state)


@torch.no_grad()
def _bits(layer: Any) -> Tensor:
    """Return the layer's signs: packed eight to a byte if it can, else one byte each."""
    if callable(getattr(layer, "packed_weight", None)):
        bits: Tensor = layer.packed_weight()[0]
        return bits.clone()
    return (layer.weight < 0).to(torch.uint8)


def _count(layer: Any) -> int:
    if hasattr(layer, "weights") and hasattr(layer, "weight_bits"):
        return int(layer.weights) * int(layer.weight_bits)
    return int(layer.weight.numel())


def _ones(bits: Tensor) -> int:
    return sum(int((bits >> place & 1).sum()) for place in range(8))


class TwoSteps:
    """Switch the weights of binary layers from float to binary after a fraction of the training.

    Applies to layers with a method ``use_float_weights(on)``. In the first step latent weights act
    as float weights and decay like those of float layers; in the second they do not decay, because
    only their signs are used (Martinez, Yang, Bulat, Tzimiropoulos 2020, section 4.2; Liu et al.
    2021). Progressively, one layer after the other is switched during the first step, in the order
    of the modules: of n layers, the i-th at i/n of it; latent weights decay until the first is.

    Args:
        network: The student.
        share: Fraction of the training with float weights, between 0 and 1.
        optimizer: Its group "latent" gets the weight decay of each step.
        weight_decay: For weights of float layers.
        progressive: Whether layers are switched one after the other.

    Attributes:
        first: Whether the first step is on: some weights are float.

    Raises:
        BinarizeError: The share is out of range.
        ModelError: No layer can be switched.
    """

    def __init__(
        self,
        network: nn.Module,
        share: float,
        optimizer: torch.optim.Optimizer,
        weight_decay: float,
        progressive: bool = False,
    ) -> None:
        if not 0 < share < 1:
            raise BinarizeError("two_steps", share, "must be between 0 and 1", "use e.g. 0.5")
        self.layers: list[Any] = [
            m for m in network.modules() if callable(getattr(m, "use_float_weights", None))
        ]
        if not self.layers:
            raise ModelError(
                "student",
                type(network).__name__,
                "has no binary layer for two_steps",
                "convert it first, or omit two_steps",
            )
        self.share = share
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.progressive = progressive
        self.first = False
        self._binary = len(self.layers)  # of the layers, from the first on

    def set_progress(self, done: float) -> None:
        """Switch what is due at training progress ``done``."""
        count = len(self.layers)
        if done >= self.share:
            self._switch(count)
        else:
            self._switch(int(count * done / self.share) if self.progressive else 0)
        for group in self.optimizer.param_groups:
            if group.get("name") == "latent":
                group["weight_decay"] = 0.0 if self._binary else self.weight_decay

    def _switch(self, binary: int) -> None:
        self.first = binary < len(self.layers)
        if binary != self._binary:
            self._binary = binary
            for place, layer in enumerate(self.layers):
                layer.use_float_weights(place >= binary)

    def end(self) -> None:
        """Switch to binary weights, wherever training has ended."""
        self._switch(len(self.layers))
