"""What a unit keeps from one frame of a video to the next: its bits and its sums.

The C library compares each frame's bits with those before, and recounts, corrects or keeps each
window's sums (csrc/stream.inc.hpp).
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from binarize.kernels import memory

__all__ = ["UnitStream", "declare"]

COUNTERS = ("bits", "changed_bits", "windows", "corrected", "recounted", "work", "work_done")


class _CStream(ctypes.Structure):
    """``BinarizeStream`` of csrc/binarize.h."""

    _fields_ = (
        ("memory", ctypes.c_void_p),
        ("valid", ctypes.c_int64),
        ("tolerance", ctypes.c_double),
        *((name, ctypes.c_int64) for name in COUNTERS),
    )


class UnitStream:
    """The state of one unit.

    Args:
        tolerance: A pixel (of a group) keeps its old bits while at most this share of them has
            changed; 0 is exact.

    Attributes:
        bytes: Its memory; 0 before the first frame, and if the unit cannot keep a state.
    """

    def __init__(self, tolerance: float = 0.0) -> None:
        self._structure = _CStream(tolerance=tolerance)
        self._memory: Tensor | None = None
        self._weight: Tensor | None = None
        self._version: int | None = None

    @property
    def bytes(self) -> int:
        return 0 if self._memory is None else self._memory.numel()

    def counters(self) -> dict[str, int]:
        """Return the library's counters since the state was made, by name."""
        return {name: getattr(self._structure, name) for name in COUNTERS}

    def ready(self, library: Any, number: int, address: int, weight: Any) -> Any:
        """Return the C structure for a call, or ``None`` if the unit cannot keep a state.

        Args:
            library: The kernels' library.
            number: Number of the instruction set.
            address: Of the C geometry of the call.
            weight: The weight as the library gets it; if it is another than before, nothing of the
                last frame is used.
        """
        version = None if weight.is_inference() else weight._version
        if self._memory is None:
            size = library.binarize_stream_bytes(number, address)
            if size <= 0:
                return None
            self._memory = memory.empty((size,), (1,), torch.uint8)
            self._structure.memory = self._memory.data_ptr()
        if weight is not self._weight or version != self._version:
            self._structure.valid = 0
            self._weight, self._version = weight, version
        return ctypes.byref(self._structure)


def declare(library: Any) -> None:
    """Declare the library's functions to ctypes."""
    library.binarize_stream_bytes.restype = ctypes.c_int64
    library.binarize_stream_bytes.argtypes = [ctypes.c_int32, ctypes.c_void_p]
    library.binarize_unit_stream.restype = ctypes.c_int32
    library.binarize_unit_stream.argtypes = [
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
