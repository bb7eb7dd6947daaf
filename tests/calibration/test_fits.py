"""Closed forms of norms and activations: what they match exactly, they match exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from binarize.calibration.fits import Moments, Slopes, set_norm
from binarize.nn import ShiftedPReLU
from binarize.nn.activations import Maxout


def moments(x: torch.Tensor, y: torch.Tensor) -> Moments:
    found = Moments()
    for part in torch.arange(len(x)).tensor_split(3):
        found.add(x[part], y[part])
    return found


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_a_norm_matches_an_affine_map_exactly() -> None:
    x = draw(50, 3) * torch.tensor([1.0, 20.0, 0.1]) + torch.tensor([0.0, 5.0, -3.0])
    gain, bias = torch.tensor([2.0, -1.0, 0.0]).double(), torch.tensor([0.5, 7.0, -2.0]).double()
    norm = nn.BatchNorm1d(3).double()
    set_norm(norm, moments(x, gain * x + bias).result(), 50)
    assert torch.allclose(norm.eval()(x), gain * x + bias)
    assert torch.allclose(norm.running_mean, x.mean(0))
    assert torch.allclose(norm.running_var, x.var(0))
    # In training mode statistics are those of the batch, and only their rounding differs.
    assert torch.allclose(norm.train()(x), gain * x + bias, rtol=0.05, atol=0.5)


def test_a_norm_is_the_least_squares_line() -> None:
    x, y = draw(40, 2), draw(40, 3)[:, 1:]
    norm = nn.BatchNorm1d(2, eps=0.1).double()
    set_norm(norm, moments(x, y).result(), 40)
    norm.eval()
    for c in range(2):
        known = torch.stack([x[:, c], torch.ones(40).double()], 1)
        line = known @ torch.linalg.lstsq(known, y[:, c : c + 1]).solution
        assert torch.allclose(norm(x)[:, c], line[:, 0])


@pytest.mark.parametrize("value", [0.0, 1e4 / 3])
def test_a_channel_that_never_varies(value: float) -> None:
    x = torch.full((7, 1), value)
    norm = nn.BatchNorm1d(1)
    nn.init.constant_(norm.weight, 5.0)
    set_norm(norm, moments(x, draw(7, 1)).result(), 7)
    assert norm.weight.item() == 1
    assert norm.running_var.item() < 1e-3
    assert torch.allclose(norm.bias.double(), draw(7, 1).mean(0))


def test_norms_without_gain_or_statistics() -> None:
    x = draw(30, 2) + 3
    bare = nn.BatchNorm1d(2, affine=False).double()
    set_norm(bare, moments(x, -x).result(), 30)
    assert torch.allclose(bare.running_mean, x.mean(0))
    loose = nn.BatchNorm1d(2, track_running_stats=False, eps=1e-12).double()
    set_norm(loose, moments(x, 1 - 2 * x).result(), 30)
    assert torch.allclose(loose(x), 1 - 2 * x)


@pytest.mark.parametrize("out_shift", [True, False])
def test_slopes_of_a_shifted_prelu_are_recovered(out_shift: bool) -> None:
    true = ShiftedPReLU(3, out_shift=out_shift, channel_dim=-1).double()
    for parameter in true.parameters():
        nn.init.normal_(parameter)
    found = ShiftedPReLU(3, out_shift=out_shift, channel_dim=-1).double()
    with torch.no_grad():
        found.shift.copy_(true.shift)
    slopes, x = Slopes(found), draw(60, 3)
    for part in (slice(0, 20), slice(20, 60)):
        slopes.add(x[part], true(x[part]).detach())
    slopes.apply()
    assert torch.allclose(found.slope, true.slope)
    assert torch.allclose(found(x), true(x))


def test_slopes_of_maxout_are_recovered() -> None:
    true, found = Maxout(2, channel_dim=-1).double(), Maxout(2, channel_dim=-1).double()
    nn.init.normal_(true.positive)
    nn.init.normal_(true.negative)
    x = draw(60, 2)
    slopes = Slopes(found)
    slopes.add(x, true(x).detach())
    slopes.apply()
    assert torch.allclose(found.positive, true.positive)
    assert torch.allclose(found.negative, true.negative)


def test_a_slope_that_no_input_reaches_stays() -> None:
    module = ShiftedPReLU(2, out_shift=False, channel_dim=-1).double()
    x = draw(20, 2)
    x[:, 0] = x[:, 0].abs()
    slopes = Slopes(module)
    slopes.add(x, x.relu())
    slopes.apply()
    assert torch.allclose(module.slope, torch.tensor([0.25, 0.0]).double())


def test_what_has_slopes() -> None:
    assert Slopes.fits(ShiftedPReLU(1))
    assert Slopes.fits(Maxout(1))
    assert not Slopes.fits(nn.ReLU())
    assert not Slopes.fits(None)
