"""Two-step training: binary activations first, binary weights later."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from binarize.errors import BinarizeError, ModelError

__all__ = ["TwoSteps"]


class TwoSteps:
    """Switch the weights of binary layers from float to binary after a fraction of the training.

    Applies to layers with a method ``use_float_weights(on)``. In the first step latent weights act
    as float weights and decay like those of float layers; in the second they do not decay, because
    only their signs are used (Martinez, Yang, Bulat, Tzimiropoulos 2020, section 4.2; Liu et al.
    2021).

    Args:
        network: The student.
        share: Fraction of the training with float weights, between 0 and 1.
        optimizer: Its group "latent" gets the weight decay of each step.
        weight_decay: For weights of float layers.

    Attributes:
        first: Whether the first step is on.

    Raises:
        BinarizeError: The share is out of range, or no layer can be switched.
    """

    def __init__(
        self,
        network: nn.Module,
        share: float,
        optimizer: torch.optim.Optimizer,
        weight_decay: float,
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
        self.first = False

    def set_progress(self, done: float) -> None:
        """Switch if it is due at training progress ``done``."""
        first = done < self.share
        if first != self.first:
            self._switch(first)
        for group in self.optimizer.param_groups:
            if group.get("name") == "latent":
                group["weight_decay"] = self.weight_decay if first else 0.0

    def _switch(self, first: bool) -> None:
        self.first = first
        for layer in self.layers:
            layer.use_float_weights(first)

    def end(self) -> None:
        """Switch to binary weights, wherever training has ended."""
        self._switch(False)
