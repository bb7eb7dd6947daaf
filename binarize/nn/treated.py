"""The base class of all layers that store their weight in fewer bits than a float layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["StoredParts", "TreatedLayer"]

StoredParts = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Dtype and shape of a weight's tensors in a file, by the suffix of their names."""


class TreatedLayer(nn.Module):
    """A layer that replaces a float layer and computes with fewer bits.

    The rest of the package asks these methods rather than checking classes: how many bits there
    are, what is stored of the weight, and how to restore it.

    Attributes:
        weight: Latent float weight, the trained parameter.
        site: Dotted name of the layer in the converted network, or empty.
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
        """Describe how the weight is stored; layers that share a weight must agree on it."""
        raise NotImplementedError

    def stored_parts(self, weight: Tensor) -> StoredParts:
        """Return dtypes and shapes of the tensors from :meth:`packed_weight`, in its order.

        Args:
            weight: The latent weight, which need have no values.
        """
        raise NotImplementedError

    def packed_weight(self) -> tuple[Tensor, ...]:
        """Return the weight as it is stored."""
        raise NotImplementedError

    def load_packed_weight(self, *parts: Tensor) -> None:
        """Set the latent weight so that the effective weight is exactly the stored one.

        Args:
            *parts: From :meth:`packed_weight`. The layer's buffers must already be those of the
                stored layer.
        """
        raise NotImplementedError
