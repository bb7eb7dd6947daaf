"""Treatments: the ways to convert a layer, one value each.

Rules, the rewriter, packing and the reports look up here what an action means. They ask the layer
itself (:class:`~binarize.nn.treated.TreatedLayer`) how many bits there are and what is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from binarize.nn.base import BinaryLayer
from binarize.nn.int8 import Int8Layer
from binarize.nn.packed import pack_layer
from binarize.nn.packed_int8 import pack_int8
from binarize.nn.treated import TreatedLayer

__all__ = ["TREATMENTS", "Treatment", "pack_treated"]


@dataclass(frozen=True)
class Treatment:
    """A way to convert a float layer.

    Attributes:
        action: Its name in rules, overrides and plans.
        title: Its name in tables.
        layer: The class of the converted layers; ``None`` if the float layer stays.
        takes_unit: Whether a rule may override parts of the policy's unit for it.
        adopts_norm: Whether the norm after the layer becomes its own.
        pack: Packs such a layer, given the layer and the stored parts of its weight.
    """

    action: str
    title: str
    layer: type[TreatedLayer] | None = None
    takes_unit: bool = False
    adopts_norm: bool = False
    pack: Callable[..., nn.Module] | None = None


TREATMENTS = {
    each.action: each
    for each in (
        Treatment("binarize", "1-bit", BinaryLayer, True, True, pack_layer),
        Treatment("keep", "float"),
        Treatment("int8", "8-bit", Int8Layer, pack=pack_int8),
    )
}


def pack_treated(layer: TreatedLayer, *parts: Any) -> nn.Module:
    """Pack a layer.

    Args:
        layer: The layer; it stays unchanged.
        *parts: Its weight as it is stored, see :meth:`TreatedLayer.packed_weight`.

    Raises:
        ModelError: The layer is not ready to be packed.
    """
    for treatment in TREATMENTS.values():
        if treatment.layer is not None and isinstance(layer, treatment.layer):
            assert treatment.pack is not None
            return treatment.pack(layer, *parts)
    raise TypeError(type(layer).__name__)
