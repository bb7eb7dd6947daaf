"""Packed weights in an instruction set's fastest layout, prepared once per weight.

Files and modules hold the portable layout (:mod:`binarize.kernels.layout`), which every processor
reads. The prepared copy lives as long as the weight, in this process only.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from binarize.kernels.geometry import Geometry

__all__ = ["PreparedWeights", "aligned", "declare"]


class _Entry(NamedTuple):
    weight: weakref.ref[Tensor]
    version: int | None
    layout: tuple[Any, ...]
    prepared: Tensor | None


class PreparedWeights:
    """Weights prepared for one instruction set.

    Args:
        library: The kernels' library.
        number: Number of the instruction set.
    """

    def __init__(self, library: Any, number: int) -> None:
        self._library = library
        self._number = number
        # By id: torch's own dictionary for this is slower than the smallest layers.
        self._entries: dict[int, _Entry] = {}

    def get(self, weight: Tensor, g: Geometry) -> Tensor | None:
        """Return the prepared weight, or ``None`` if the portable one is fastest.

        Args:
            weight: Packed weight.
            g: Geometry of the call.
        """
        entry = self._entries.get(id(weight))
        if (
            entry is None
            or entry.weight() is not weight
            or entry.layout != g.layout
            or not _is_current(entry, weight)
        ):
            entry = self._entries[id(weight)] = self._make(weight, g)
        return entry.prepared

    def _make(self, weight: Tensor, g: Geometry) -> _Entry:
        version = None if weight.is_inference() else weight._version
        size = self._library.binarize_prepared(self._number, g.address)
        prepared = None
        if size > 0:
            prepared = torch.empty(size, dtype=torch.uint8)
            source = aligned(weight)
            pointers = source.data_ptr(), prepared.data_ptr()
            if self._library.binarize_prepare_weight(self._number, g.address, *pointers):
                prepared = None
        key = id(weight)
        return _Entry(
            weakref.ref(weight, lambda ref: self._drop(key, ref)), version, g.layout, prepared
        )

    def _drop(self, key: int, ref: weakref.ref[Tensor]) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.weight is ref:  # the id may already belong to another weight
            del self._entries[key]


def _is_current(entry: _Entry, weight: Tensor) -> bool:
    if not weight.is_inference():
        return entry.version == weight._version
    # Inference tensors have no version counter; the copy starts with the portable weight.
    return entry.prepared is None or torch.equal(entry.prepared[: weight.numel()], weight.flatten())


def aligned(weight: Tensor) -> Tensor:
    """Return a packed weight as the library reads it: contiguous, with 8-byte aligned words."""
    return weight if weight.is_contiguous() and not weight.data_ptr() % 8 else weight.clone()


def declare(library: Any) -> None:
    """Declare the library's functions to ctypes."""
    library.binarize_prepared.restype = ctypes.c_int64
    library.binarize_prepared.argtypes = [ctypes.c_int32, ctypes.c_void_p]
    library.binarize_prepare_weight.restype = ctypes.c_int32
    library.binarize_prepare_weight.argtypes = [ctypes.c_int32, *[ctypes.c_void_p] * 3]
