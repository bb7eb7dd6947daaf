"""The bypass follows the convolution's output size, whatever the stride and the padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from binarize.ops import resample_bypass

QUIET = settings(max_examples=150, deadline=None, database=None, derandomize=True)


def windows(x: Tensor, stride: int, start: int, count: int) -> Tensor:
    """Means of ``count`` windows of ``stride`` pixels; beyond the map its border is repeated."""
    length = x.shape[2]
    columns = []
    for i in range(count):
        place = [min(max(start + i * stride + j, 0), length - 1) for j in range(stride)]
        columns.append(sum(x[:, :, p] for p in place) / stride)
    return torch.stack(columns, dim=2)


@QUIET
@given(
    length=st.integers(1, 20),
    stride=st.integers(1, 4),
    reach=st.integers(1, 9),
    padding=st.integers(0, 8),
)
def test_outputs_are_means_of_windows_under_the_kernel(
    length: int, stride: int, reach: int, padding: int
) -> None:
    count = (length + padding - reach) // stride + 1
    assume(count >= 1)
    surplus = padding - reach + stride
    # More than a map's length of padding on one side is no convolution anyone builds.
    assume(surplus <= 2 * length)
    x = torch.randn(2, 3, length, dtype=torch.float64)
    y = resample_bypass(x, (stride,), (surplus,))
    assert y.shape == (2, 3, count)
    # The window's middle lies where the kernel's does, to half a stride and the odd pixel.
    starts = [s for s in range(-20, 21) if abs(s + surplus / 2) <= stride / 2 + 0.5]
    assert any(torch.allclose(y, windows(x, stride, s, count), atol=1e-12) for s in starts)


@pytest.mark.parametrize(("height", "width", "stride"), [(8, 12, 2), (9, 6, 3), (16, 8, 4)])
def test_sizes_that_divide_are_average_pooled(height: int, width: int, stride: int) -> None:
    x = torch.randn(2, 3, height, width)
    for surplus in (0, stride // 2):
        y = resample_bypass(x, (stride, stride), (surplus, surplus))
        torch.testing.assert_close(y, F.avg_pool2d(x, stride))


def test_unpadded_maps_are_cropped_to_the_middle() -> None:
    x = torch.randn(1, 2, 9, 7)
    assert torch.equal(resample_bypass(x, (1, 1), (-4, -2)), x[:, :, 2:-2, 1:-1])


def test_nothing_changes_without_stride_and_surplus() -> None:
    x = torch.randn(1, 2, 5, 7)
    assert torch.equal(resample_bypass(x, (1, 1), (0, 0)), x)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("surplus", [-2, 0, 1, 3])
def test_maps_of_every_rank_and_empty_batches(surplus: int, rank: int) -> None:
    for samples in (2, 0):
        x = torch.randn(samples, 3, *(7,) * rank)
        y = resample_bypass(x, (2,) * rank, (surplus,) * rank)
        assert y.shape == (samples, 3, *((7 + surplus) // 2,) * rank)


@pytest.mark.parametrize("value", [0.7, -3.0])
def test_equal_values_stay(value: float) -> None:
    x = torch.full((1, 2, 7, 9), value)
    for stride in ((1, 1), (2, 3)):
        for surplus in ((-1, -2), (0, 0), (1, 2)):
            y = resample_bypass(x, stride, surplus)
            torch.testing.assert_close(y, torch.full_like(y, value))
