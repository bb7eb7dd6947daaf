"""Count the binary weights that change sign between epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Flips"]


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
