"""Numbers per channel along rows: the same numbers, laid out like the map."""

from __future__ import annotations

import pytest
import torch

from binarize.ops.rows import along_rows

LAST = torch.channels_last


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("channels", [1, 2, 7, 16, 40])
@pytest.mark.parametrize("samples", [1, 3])
def test_the_numbers_are_the_same(channels: int, samples: int, dtype: torch.dtype) -> None:
    values = torch.randn(samples, channels, 1, 1, dtype=dtype)
    for shape in ((3, channels, 5, 4), (3, channels, 1, 1), (0, channels, 5, 4)):
        for memory_format in (LAST, torch.contiguous_format):
            x = torch.randn(shape, dtype=dtype).to(memory_format=memory_format)
            if samples in (1, shape[0]):
                assert torch.equal(x + along_rows(values, x), x + values)


def test_few_channels_that_lie_last_are_repeated_and_others_not() -> None:
    few, many = torch.randn(1, 8, 1, 1), torch.randn(1, 16, 1, 1)
    x = torch.randn(2, 8, 5, 6).to(memory_format=LAST)
    rows = along_rows(few, x)
    assert rows.shape == (1, 8, 1, 6)
    assert rows.is_contiguous(memory_format=LAST)
    assert along_rows(few.bfloat16(), x.bfloat16()).shape == (1, 8, 1, 6)
    assert along_rows(few, x.contiguous()) is few
    assert along_rows(many, torch.randn(2, 16, 5, 6).to(memory_format=LAST)) is many
    for other in (torch.randn(8, 1, 1), torch.randn(1, 1, 1, 1)):
        assert along_rows(other, x) is other
