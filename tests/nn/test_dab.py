"""Distribution-adaptive binarizer against its equations, in double precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import binarize
from binarize.nn import DistributionAdaptiveBinarizer

QUIET = settings(max_examples=40, deadline=None, database=None, derandomize=True)


def binarizer(channels: int, scale: str, channel_dim: int = 1) -> DistributionAdaptiveBinarizer:
    dab = DistributionAdaptiveBinarizer(channels, scale=scale, channel_dim=channel_dim).double()
    with torch.no_grad():
        for parameter in dab.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5 + 0.3)
    return dab


def parts(x: Tensor, dab: DistributionAdaptiveBinarizer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean over positions, x - beta, mean of |x - beta| and alpha, by Eqs. 4-10."""
    x = x.detach()
    positions = tuple(range(2, x.dim()))
    column = (1, -1) + (1,) * len(positions)
    k, b, a = (p.detach() for p in (dab.k, dab.b, dab.a))
    mean = x.mean(positions, keepdim=True) if positions else x
    beta = k.view(column) * mean + b.view(column)
    shifted = x - (beta - beta.abs() / 2**18)  # ties are +1
    if dab.a.numel() == 1:
        size = shifted.abs().mean(tuple(range(1, x.dim())), keepdim=True)
        alpha = torch.exp(a.view(()) * (size - 1))
    else:
        size = shifted.abs().mean(positions, keepdim=True) if positions else shifted.abs()
        alpha = torch.exp(a.view(column) * (size - 1))
    return mean, shifted, size, alpha


def reduce_to(values: Tensor, parameter: Tensor) -> Tensor:
    if parameter.numel() == 1:
        return values.sum().view(parameter.shape)
    return values.transpose(0, 1).flatten(1).sum(1)


@pytest.mark.parametrize("spatial", [(11,), (5, 7), (3, 4, 2), (1, 1)])
@pytest.mark.parametrize("scale", ["layer", "channel"])
def test_forward_and_all_gradients(scale: str, spatial: tuple[int, ...]) -> None:
    dab = binarizer(3, scale)
    x = torch.randn(4, 3, *spatial, dtype=torch.float64, requires_grad=True)
    gy = torch.randn_like(x)
    y = dab(x)
    y.backward(gy)

    mean, shifted, size, alpha = parts(x, dab)
    signs = torch.where(shifted >= 0, 1.0, -1.0).double()
    torch.testing.assert_close(y.detach(), alpha * signs)
    surrogate = torch.where(shifted.abs() < 1, 2 - 2 * shifted.abs(), 0.0)
    gradient = gy * alpha * surrogate
    torch.testing.assert_close(x.grad, gradient)
    torch.testing.assert_close(dab.k.grad, reduce_to(-gradient * mean, dab.k))
    torch.testing.assert_close(dab.b.grad, reduce_to(-gradient, dab.b))
    torch.testing.assert_close(dab.a.grad, reduce_to(gy * signs * alpha * (size - 1), dab.a))


@QUIET
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 6),
    st.sampled_from(["layer", "channel"]),
    st.integers(0, 1000),
)
def test_random_maps(samples: int, channels: int, length: int, scale: str, seed: int) -> None:
    torch.manual_seed(seed)
    dab = binarizer(channels, scale)
    x = torch.randn(samples, channels, length, length, dtype=torch.float64) * 3
    _, shifted, _, alpha = parts(x, dab)
    torch.testing.assert_close(dab(x).detach(), alpha * torch.where(shifted >= 0, 1.0, -1.0))


@pytest.mark.parametrize("scale", ["layer", "channel"])
def test_samples_do_not_see_each_other(scale: str) -> None:
    dab = binarizer(3, scale)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    together = dab(x)
    alone = torch.cat([dab(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_those_of_the_input_in_both_modes(training: bool) -> None:
    dab = binarizer(3, "layer").train(training)
    assert not list(dab.buffers())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(dab(x), dab.train(not training)(x))


def test_layer_scale_is_one_number_per_sample_channel_scale_one_per_channel() -> None:
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    layer = binarizer(3, "layer")(x).abs().flatten(1)
    assert all(len(row.unique()) == 1 for row in layer)
    channel = binarizer(3, "channel")(x).abs().flatten(2)
    assert all(len(row.unique()) == 1 for row in channel.flatten(0, 1))
    assert len(channel[0, :, 0].unique()) == 3


def test_a_map_of_equal_values_is_plus_one() -> None:
    """sign(0) = +1: the threshold of the untrained binarizer is the mean itself."""
    dab = DistributionAdaptiveBinarizer(2)
    with torch.no_grad():
        dab.k.fill_(1.0)
        dab.b.zero_()
    assert torch.all(dab(torch.zeros(1, 2, 3, 3)) > 0)
    assert torch.all(dab(torch.full((1, 2, 4, 4), 2.0)) > 0)


def test_initial_scale_is_one() -> None:
    y = DistributionAdaptiveBinarizer(4)(torch.randn(2, 4, 8, 8) * 5)
    assert torch.equal(y.abs(), torch.ones_like(y))


@pytest.mark.parametrize("scale", ["layer", "channel"])
@pytest.mark.parametrize("positions", [(), (5,), (4, 6)])
def test_channels_last(scale: str, positions: tuple[int, ...]) -> None:
    last = binarizer(3, scale, channel_dim=-1)
    first = DistributionAdaptiveBinarizer(3, scale=scale).double()
    first.load_state_dict(last.state_dict())
    x = torch.randn(2, *positions, 3, dtype=torch.float64)
    torch.testing.assert_close(last(x), first(x.movedim(-1, 1)).movedim(1, -1))


@pytest.mark.parametrize("scale", ["layer", "channel"])
def test_empty_batch(scale: str) -> None:
    assert binarizer(3, scale)(torch.zeros(0, 3, 4, 4).double()).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", ["layer", "channel"])
def test_half_precision_gives_finite_values_of_its_own_type(dtype: torch.dtype, scale: str) -> None:
    dab = DistributionAdaptiveBinarizer(3, scale=scale).to(dtype)
    y = dab((torch.randn(2, 3, 64, 64) * 30).to(dtype))
    assert y.dtype == dtype
    assert torch.isfinite(y).all()


def test_mistakes_are_told_in_one_line() -> None:
    with pytest.raises(binarize.BinarizeError, match=r"^channels=0: .*; .*1"):
        DistributionAdaptiveBinarizer(0)
    with pytest.raises(binarize.BinarizeError, match=r"^scale='layers': .*; .*layer, channel"):
        DistributionAdaptiveBinarizer(3, scale="layers")


def test_thresholds_do_not_depend_on_the_layout() -> None:
    binarizer = DistributionAdaptiveBinarizer(5).eval()
    x = 100 + 3 * torch.randn(2, 5, 37, 41)
    threshold = binarizer.terms(x)[0]
    mean = x.double().mean((2, 3), keepdim=True).float()
    assert torch.equal(threshold, mean - mean.abs() / 2**18)
    assert torch.equal(
        threshold, binarizer.terms(x.contiguous(memory_format=torch.channels_last))[0]
    )
