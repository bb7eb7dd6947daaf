"""What all layers share that hold their weight in fewer bits than a float layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["StoredParts", "TreatedLayer"]

StoredParts = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of the tensors that stand for a weight in a file, by the ending of their names."""


class TreatedLayer(nn.Module):
    """A layer that takes a float layer's place and computes with fewer bits.

    The rest of the package asks here instead of looking at classes: how many bits there are, what
    is stored of the weight, and how to get it back.

    Attributes:
        weight: Latent float weight, which is trained.
        site: Dotted name of the layer in the network that was converted, or empty.
    """

    site = ""
    weight: Any

    @property
    def weight_bits(self) -> int:
        """Bits per weight of the layer."""
        raise NotImplementedError

    @property
    def activation_bits(self) -> int:
        """Bits per value of the layer's input."""
        raise NotImplementedError

    @property
    def weights(self) -> int:
        """Number of weights of the layer, each of ``weight_bits`` bits."""
        return int(self.weight.numel())

    @property
    def coding(self) -> str:
        """How the weight is stored; layers that share a weight must agree in it."""
        raise NotImplementedError

    def stored_parts(self, weight: Tensor) -> StoredParts:
        """Type and shape of what :meth:`packed_weight` returns, in its order.

        Args:
            weight: The latent weight, which may have no values.
        """
        raise NotImplementedError

    def packed_weight(self) -> tuple[Tensor, ...]:
        """The weight as it is stored."""
        raise NotImplementedError

    def load_packed_weight(self, *parts: Tensor) -> None:
        """Set the latent weight to one that is in use exactly as the stored one was.

        Args:
            *parts: From :meth:`packed_weight`. The layer's buffers are those of the stored layer
                already.
        """
        raise NotImplementedError
