"""Count the levels of one layer's binarized activations, call by call.

Shape legend: N samples, C channels, L levels of a binarizer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from binarize.inspection.numbers import LayerInspection
from binarize.nn import BinaryLayer

__all__ = ["Tally", "entropy"]


class Tally:
    """Running statistics of one layer.

    Args:
        name: Its dotted name.
        layer: The layer.
    """

    def __init__(self, name: str, layer: BinaryLayer) -> None:
        self.name = name
        self.layer = layer
        self.calls = 0
        self._counts = torch.zeros(
            layer.binarizer.channels, 2**layer.activation_bits, dtype=torch.int64
        )
        self._entropies = torch.zeros(layer.binarizer.channels, dtype=torch.float64)
        self._maps: list[float] = []

    def add(self, values: Tensor) -> list[float]:
        """Count one call.

        Args:
            values: The binarizer's output, samples first.

        Returns:
            The entropy of each sample, averaged over the channels; empty for activations without
            positions.
        """
        self.calls += 1
        binarizer = self.layer.binarizer
        channels, levels = self._counts.shape
        index = binarizer.level_index(values).movedim(binarizer.channel_dim, 1)
        samples, positions = index.shape[0], math.prod(index.shape[2:])
        if not index.numel():
            return []
        # Each channel of each sample has its own index range, so that one bincount covers all.
        rows = torch.arange(samples * channels, device=index.device) * levels
        numbers = index.reshape(samples * channels, positions) + rows[:, None]
        counts = torch.bincount(numbers.flatten(), minlength=samples * channels * levels)
        counts = counts.view(samples, channels, levels).cpu()
        entropies = entropy(counts.double() / positions)
        self._counts += counts.sum(0)
        self._entropies += entropies.sum(0)
        means: list[float] = entropies.mean(1).tolist()
        self._maps += means
        return means

    def numbers(self) -> LayerInspection:
        """Return the statistics so far."""
        share = pooled = mean = torch.zeros(0, dtype=torch.float64)
        if self._maps:
            shares = self._counts.double() / self._counts.sum(1, keepdim=True)
            share = shares[:, shares.shape[1] // 2 :].sum(1)
            pooled = entropy(shares)
            mean = self._entropies / len(self._maps)
        return LayerInspection(
            name=self.name,
            kind=type(self.layer).__name__,
            binarizer=self.layer.spec.binarizer,
            bits=self.layer.activation_bits,
            calls=self.calls,
            share=tuple(share.tolist()),
            entropy=tuple(mean.tolist()),
            pooled_entropy=tuple(pooled.tolist()),
            map_entropy=tuple(self._maps),
            parameters=self._parameters(),
        )

    def _parameters(self) -> dict[str, tuple[float, ...]]:
        binarizer = self.layer.binarizer
        found = (*binarizer.named_parameters(), *binarizer.named_buffers())
        return {
            name: tuple(tensor.detach().double().flatten().tolist())
            for name, tensor in found
            if tensor.is_floating_point()
        }


def entropy(shares: Tensor) -> Tensor:
    r"""Entropy in bits, :math:`-\sum_l p_l \log_2 p_l`, with :math:`0 \log 0 = 0`.

    With two levels it is BiDense, Eq. 2: 1 if both are equally frequent, 0 if only one occurs.

    Args:
        shares: Shares of the levels (..., levels), which sum to 1.

    Returns:
        Tensor (...) from 0 to the logarithm of the number of levels.

    Deviation: the paper uses the natural logarithm; here the unit is bits.
    """
    return torch.special.entr(shares).sum(-1) / math.log(2)
