"""Memory of large maps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from binarize.kernels import memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_a_tensor_like_any_other(dtype: torch.dtype) -> None:
    made = memory.empty((2, 3, 4), (12, 1, 3), dtype)
    assert made.shape == (2, 3, 4)
    assert made.stride() == (12, 1, 3)
    assert made.dtype == dtype
    assert memory.empty((0, 3), (3, 1)).numel() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_large_ones_are_in_large_pages() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        pytest.skip("this kernel has no large pages")

    def advised(tensor: torch.Tensor) -> bool:
        middle, within = tensor.data_ptr() + tensor.untyped_storage().nbytes() // 2, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            first = line.split()[0]
            if "-" in first:
                start, end = (int(part, 16) for part in first.split("-"))
                within = start <= middle < end
            elif within and first == "VmFlags:":
                return "hg" in line.split()
        raise AssertionError("its memory is not listed")

    large = memory.empty((memory.LARGE // 4 + 1,), (1,))
    assert advised(large)
    assert not advised(torch.empty(memory.LARGE // 4 + 1))
    large[0] = large[-1] = 1
    assert large[0] + large[-1] == 2
