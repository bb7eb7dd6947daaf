"""From a trained 1-bit network to one that computes with bits."""

from binarize.lower.network import PackedNetwork
from binarize.lower.pack import pack

__all__ = ["PackedNetwork", "pack"]
