"""The bypass follows the convolution's output size, whatever the stride and the padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from binarize.ops import resample_bypass


@pytest.mark.parametrize(("height", "width", "stride"), [(8, 12, 2), (9, 6, 3), (16, 8, 4)])
def test_pooling_of_sizes_that_divide_is_average_pooling(
    height: int, width: int, stride: int
) -> None:
    x = torch.randn(2, 3, height, width)
    y = resample_bypass(x, (height // stride, width // stride), mode="pool")
    torch.testing.assert_close(y, F.avg_pool2d(x, stride))


@pytest.mark.parametrize("size", [(7, 9), (5, 5), (13, 6), (1, 1), (3, 2)])
@pytest.mark.parametrize("stride", [2, 3, 4])
def test_pooling_of_odd_sizes_averages_every_pixel(size: tuple[int, int], stride: int) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    wanted = tuple(-(-length // stride) for length in size)
    y = resample_bypass(x, wanted, mode="pool")
    assert y.shape == (2, 3, *wanted)
    y.sum().backward()
    # Averages: all weights of an output sum to one, and no pixel is left out.
    assert torch.all(x.grad > 0)
    assert x.grad.sum().item() == pytest.approx(y.numel())
    constant = torch.full_like(x, 0.7).detach()
    torch.testing.assert_close(
        resample_bypass(constant, wanted, mode="pool"), torch.full_like(y, 0.7)
    )


@pytest.mark.parametrize(("length", "wanted"), [(8, 6), (7, 4), (9, 3), (5, 5), (6, 1)])
def test_cropping_takes_the_middle(length: int, wanted: int) -> None:
    x = torch.arange(float(length)).reshape(1, 1, length, 1)
    y = resample_bypass(x, (wanted, 1), mode="crop").flatten()
    start = int(y[0])
    assert y.tolist() == [float(start + i) for i in range(wanted)]
    # As much is cut before as after, up to the one pixel that does not divide.
    assert abs(start - (length - wanted - start)) <= 1


@pytest.mark.parametrize(("length", "wanted"), [(4, 8), (4, 9), (5, 15), (3, 7), (4, 4)])
def test_nearest_repeats_pixels(length: int, wanted: int) -> None:
    x = torch.randn(2, 3, length, length)
    y = resample_bypass(x, (wanted, wanted), mode="nearest")
    assert y.shape == (2, 3, wanted, wanted)
    torch.testing.assert_close(y, F.interpolate(x, size=(wanted, wanted), mode="nearest"))


@pytest.mark.parametrize("mode", ["pool", "crop", "nearest"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_maps_of_every_rank_and_empty_batches(mode: str, rank: int) -> None:
    size = (6,) * rank if mode == "nearest" else (3,) * rank
    for samples in (2, 0):
        y = resample_bypass(torch.randn(samples, 3, *(5,) * rank), size, mode=mode)
        assert y.shape == (samples, 3, *size)


@pytest.mark.parametrize("mode", ["pool", "crop", "nearest"])
def test_equal_sizes_change_nothing(mode: str) -> None:
    x = torch.randn(1, 2, 5, 7)
    torch.testing.assert_close(resample_bypass(x, (5, 7), mode=mode), x)
