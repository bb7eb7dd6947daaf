"""Memory of large maps, in large pages where the system has them.

A C library's allocator keeps small pieces of memory when they are freed and hands them out again.
Large ones it takes from the system anew every time, in pages of 4 KiB, each of which is fetched and
cleared when it is first written: for a map of 100 MB that takes longer than the writing. Pages of
2 MiB on Linux are as good as free.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["LARGE", "empty"]

LARGE = 2**25
"""Bytes from which glibc never hands out freed memory again: the most that its threshold
``M_MMAP_THRESHOLD`` grows to (mallopt(3)) on systems of 64 bits."""


@lru_cache(maxsize=1)
def _advise() -> Callable[[int, int, int], int] | None:
    """``madvise`` of the C library, or ``None`` where there are no large pages to ask for."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is not None:
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise


def empty(
    shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """A tensor on the CPU, not initialised; in large pages, if it is large.

    Args:
        shape: Its sizes.
        strides: In elements.
        dtype: Its type.

    Returns:
        The tensor. Where large pages cannot be had, it is like any other.
    """
    made = torch.empty_strided(shape, strides, dtype=dtype)
    size = made.untyped_storage().nbytes()
    if size >= LARGE and (advise := _advise()):
        page, start = mmap.PAGESIZE, made.data_ptr()
        first, end = -(-start // page) * page, (start + size) // page * page
        advise(first, end - first, mmap.MADV_HUGEPAGE)
    return made
