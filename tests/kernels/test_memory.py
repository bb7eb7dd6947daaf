"""Memory of large feature maps."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from binarize.kernels import memory

COUNT = memory.LARGE // 4


@pytest.fixture(autouse=True)
def none_free() -> Iterator[None]:
    memory._free.clear()
    yield
    memory._free.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("large", [True, False])
def test_a_tensor_like_any_other(
    dtype: torch.dtype, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(memory, "LARGE", 1)
    for _ in range(2):
        made = memory.empty((2, 3, 4), (12, 1, 3), dtype)
        assert made.shape == (2, 3, 4)
        assert made.stride() == (12, 1, 3)
        assert made.dtype == dtype
        assert made.data_ptr() % 64 == 0
        made.copy_(torch.arange(24).view(2, 3, 4))
        assert torch.equal(made.flatten().long(), torch.arange(24))
        assert made.clone().resize_(5).numel() == 5
        assert memory.empty((0, 3), (3, 1)).numel() == 0


needs_pages = pytest.mark.skipif(not memory._KNOWN, reason="this system has no MADV_FREE")


@needs_pages
def test_memory_is_used_again_when_no_tensor_needs_it() -> None:
    first = memory.empty((COUNT,), (1,))
    place = first.data_ptr()
    view = first[5:].view(-1, 1)
    view.fill_(3)
    del first
    second = memory.empty((COUNT,), (1,))
    assert second.data_ptr() != place  # a view still needs it
    assert view.sum() == 3 * (COUNT - 5)
    del view
    smaller = memory.empty((COUNT // 3,), (1,))  # not large
    assert smaller.data_ptr() != place
    much_larger = memory.empty((COUNT + 1,), (1,))
    assert much_larger.data_ptr() != place
    third = memory.empty((COUNT,), (1,))
    assert third.data_ptr() == place
    wide = memory.empty((3 * COUNT,), (1,))
    place = wide.data_ptr()
    del wide
    assert memory.empty((COUNT,), (1,)).data_ptr() != place  # too much of it would lie idle
    del third


@needs_pages
def test_not_much_is_kept() -> None:
    held = [memory.empty((COUNT,), (1,)) for _ in range(memory._MOST + 3)]
    del held
    assert len(memory._free) == memory._MOST


@needs_pages
def test_several_threads_never_share_memory() -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(60):
            made = memory.empty((COUNT,), (1,))
            made[:: COUNT // 7] = number
            if not bool((made[:: COUNT // 7] == number).all()):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
