"""Reuse of memory for large feature maps.

A C library's allocator recycles small blocks but maps large ones afresh every time, and each page
faults and is cleared on its first write; for a feature map of 100 MB, that takes ten times as long
as the write itself. Here, large feature maps use memory that returns to a short free list when
their tensor is deleted. The system can reclaim memory on the list at any time (``MADV_FREE``).
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
"""Bytes from which glibc never recycles freed memory: the maximum of its threshold
``M_MMAP_THRESHOLD`` (mallopt(3)) on 64-bit systems."""

_KNOWN = all(hasattr(mmap, name) for name in ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_FREE"))
_MOST = 8
# Only changed by single, atomic list operations: threads may do them concurrently, and so may a
# garbage collection in between.
_free: list[mmap.mmap] = []


def empty(
    shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return an uninitialised CPU tensor.

    Args:
        shape: Its sizes.
        strides: The strides, in elements.
        dtype: The dtype.

    Returns:
        The tensor. With :data:`LARGE` bytes or more, its memory may be recycled and its storage
        cannot be resized; where the system does not support that, it is an ordinary tensor.
    """
    if prod(shape) * dtype.itemsize >= LARGE and _KNOWN:
        count = 1 + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        try:
            block = _take(count * dtype.itemsize)
        except OSError:
            pass  # torch's own error message is more informative
        else:
            view = memoryview(block)
            # Only the tensor holds the view.
            weakref.finalize(view, _release, block).atexit = False
            return torch.frombuffer(view, dtype=dtype, count=count).as_strided(shape, strides)
    return torch.empty_strided(shape, strides, dtype=dtype)


def _take(size: int) -> mmap.mmap:
    for block in sorted(_free, key=len):
        if size <= len(block) <= 2 * size:
            try:
                _free.remove(block)
            except ValueError:
                continue  # another thread took it
            return block
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _release(block: mmap.mmap) -> None:
    block.madvise(mmap.MADV_FREE)
    _free.append(block)
    if len(_free) > _MOST:
        del _free[:1]
