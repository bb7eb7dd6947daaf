"""Memory of large maps, which is used again.

A C library's allocator keeps small pieces of memory when they are freed and hands them out again.
Large ones it takes from the system anew every time, in pages each of which is fetched and cleared
when it is first written; for a map of 100 MB that takes ten times as long as the writing. Large
maps are made in memory of our own here, which goes back to a short list when its tensor is gone.
What is on the list is the system's to take whenever it needs memory (``MADV_FREE``).
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

__all__ = ["LARGE", "empty"]

LARGE = 2**25
"""Bytes from which glibc never hands out freed memory again: the most that its threshold
``M_MMAP_THRESHOLD`` grows to (mallopt(3)) on systems of 64 bits."""

_KNOWN = all(hasattr(mmap, name) for name in ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_FREE"))
_MOST = 8
# Only ever changed by single operations of the list, which threads may do at the same time, and a
# garbage collection in the middle of one.
_free: list[mmap.mmap] = []


def empty(
    shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """A tensor on the CPU, not initialised.

    Args:
        shape: Its sizes.
        strides: In elements.
        dtype: Its type.

    Returns:
        The tensor. If it has :data:`LARGE` bytes or more, its memory may have been another's, and
        its storage cannot be resized; where the system does not allow that, it is like any other.
    """
    if prod(shape) * dtype.itemsize >= LARGE and _KNOWN:
        count = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        try:
            room = _take(count * dtype.itemsize)
        except OSError:
            pass  # torch's own message tells more
        else:
            view = memoryview(room)
            # The tensor holds the view, and nobody else does.
            weakref.finalize(view, _give_back, room).atexit = False
            return torch.frombuffer(view, dtype=dtype, count=count).as_strided(shape, strides)
    return torch.empty_strided(shape, strides, dtype=dtype)


def _take(size: int) -> mmap.mmap:
    for room in sorted(_free, key=len):
        if size <= len(room) <= 2 * size:
            try:
                _free.remove(room)
            except ValueError:
                continue  # another thread was quicker
            return room
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _give_back(room: mmap.mmap) -> None:
    room.madvise(mmap.MADV_FREE)
    _free.append(room)
    if len(_free) > _MOST:
        del _free[:1]
