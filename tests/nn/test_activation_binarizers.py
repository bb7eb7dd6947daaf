"""Activation binarizers of other methods against their equations, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from binarize.errors import BinarizeError
from binarize.nn import BiConv2d, BiLinear, UnitSpec
from binarize.nn.activation_binarizers import (
    AblatedBinarizer,
    AdaptiveSet,
    AnnealedSign,
    ElasticSign,
    LearnedLevels,
    MagnitudeSign,
    RedistributedSign,
    ShiftedSign,
    Sign,
)
from binarize.nn.parts import BINARIZERS

BELOW, ABOVE = math.nextafter(1.0, 0.0), math.nextafter(1.0, 2.0)
# Zero in both signs, the surrogates' edges and their neighbours, and what lies beyond.
POINTS = [0.0, -0.0, 1e-9, -1e-9, 0.3, -0.3, BELOW, -BELOW, 1.0, -1.0, ABOVE, -ABOVE, 2.5, -2.5]


def points(channels: int = 2, samples: int = 1) -> Tensor:
    """The points in every channel: (samples, channels, 1, 14)."""
    row = torch.tensor(POINTS, dtype=torch.float64)
    return row.expand(samples, channels, 1, -1).clone().requires_grad_()


def run(binarizer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and an arriving gradient of random numbers that was sent back."""
    y = binarizer(x)
    torch.manual_seed(3)
    gy = torch.randn_like(y)
    y.backward(gy)
    return y.detach(), gy


def signs(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def polynomial(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1, 2 - 2 * x.abs(), 0.0)


def clip(x: Tensor) -> Tensor:
    return torch.where(x.abs() <= 1, 1.0, 0.0).to(x.dtype)


def per_channel(values: Tensor) -> Tensor:
    return values.transpose(0, 1).flatten(1).sum(1)


def same(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("surrogate", "slope"), [("clip", clip), ("polynomial", polynomial)])
def test_sign(surrogate: str, slope: Callable[[Tensor], Tensor]) -> None:
    x = points()
    y, gy = run(Sign(2, surrogate=surrogate), x)
    assert y.tolist() == signs(x.detach()).tolist()
    same(x.grad, gy * slope(x.detach()))


def test_shifted_sign() -> None:
    binarizer = ShiftedSign(2).double()
    with torch.no_grad():
        binarizer.b.copy_(torch.tensor([0.3, -1.0]))
    x = points(samples=2)
    y, gy = run(binarizer, x)
    shifted = x.detach() + torch.tensor([0.3, -1.0], dtype=torch.float64).view(1, 2, 1, 1)
    shifted[:, 0] = x.detach()[:, 0] + binarizer.b.detach()[0]
    assert y.tolist() == signs(shifted).tolist()
    same(x.grad, gy * polynomial(shifted))
    same(binarizer.b.grad, per_channel(gy * polynomial(shifted)))


def test_magnitude_sign() -> None:
    x = points(samples=2)
    with torch.no_grad():
        x[1] *= 3
    y, gy = run(MagnitudeSign(2), x)
    size = x.detach().abs().flatten(1).mean(1).view(2, 1, 1, 1)
    same(y, signs(x.detach()) * size)
    same(x.grad, gy * clip(x.detach()) * size)  # nothing through the mean


@pytest.mark.parametrize("done", [0.0, 0.5, 0.75, 1.0])
def test_annealed_sign(done: float) -> None:
    binarizer = AnnealedSign(2).double()
    binarizer.set_progress(done)
    x = points()
    y, gy = run(binarizer, x)
    t = 10 ** (-3 + 4 * done)
    k = max(1 / t, 1.0)
    assert y.tolist() == signs(x.detach()).tolist()
    same(x.grad, gy * k * t * (1 - torch.tanh(t * x.detach()) ** 2))


def test_the_schedule_is_in_the_state() -> None:
    binarizer = AnnealedSign(2)
    binarizer.set_progress(0.25)
    other = AnnealedSign(2)
    other.load_state_dict(binarizer.state_dict())
    assert other.progress.item() == 0.25
    other.reset_parameters()
    assert other.progress.item() == 0.0


@pytest.mark.parametrize("alpha", [0.5, -0.5, 2.0])
def test_adaptive_set(alpha: float) -> None:
    beta = 0.25
    binarizer = AdaptiveSet(2).double()
    with torch.no_grad():
        binarizer.alpha.fill_(alpha)
        binarizer.beta.fill_(beta)
    x = points()
    with torch.no_grad():
        x[0, 1] = beta + alpha * x[0, 1]  # the edges of the surrogate, and beta itself
    y, gy = run(binarizer, x)
    u = (x.detach() - beta) / alpha
    same(y, alpha * signs(u) + beta)
    assert set(y.unique().tolist()) <= {beta - alpha, beta + alpha}
    same(x.grad, gy * polynomial(u))
    same(binarizer.alpha.grad, (gy * (signs(u) - polynomial(u) * u)).sum().view(1))
    same(binarizer.beta.grad, (gy * (1 - polynomial(u))).sum().view(1))


def test_redistributed_sign() -> None:
    k, b, beta = torch.tensor([2.0, -0.5]), torch.tensor([0.0, 0.25]), 1.5
    binarizer = RedistributedSign(2).double()
    with torch.no_grad():
        binarizer.k.copy_(k)
        binarizer.b.copy_(b)
        binarizer.beta.fill_(beta)
    x = points(samples=2)
    y, gy = run(binarizer, x)
    line = k.view(1, 2, 1, 1).double() * x.detach() + b.view(1, 2, 1, 1).double()
    slope = 1 - torch.tanh(beta * line) ** 2
    assert y.tolist() == signs(line).tolist()
    same(x.grad, gy * beta * slope * k.view(1, 2, 1, 1))
    same(binarizer.k.grad, per_channel(gy * beta * slope * x.detach()))
    same(binarizer.b.grad, per_channel(gy * beta * slope))
    same(binarizer.beta.grad, (gy * slope * line).sum().view(1))


def test_elastic_sign() -> None:
    binarizer = ElasticSign(2).double()
    with torch.no_grad():
        binarizer.alpha.fill_(0.3)
        binarizer.b.copy_(torch.tensor([0.0, 0.5]))
        binarizer.started.fill_(True)
    x = points(samples=2)
    y, gy = run(binarizer, x)
    shifted = x.detach() + binarizer.b.detach().view(1, 2, 1, 1)
    inside = torch.where((shifted / 0.3).abs() <= 1, 1.0, 0.0)
    assert 0 < inside.mean() < 1
    assert inside[0, 0, 0, 4] == 1  # 0.3 itself
    same(y, 0.3 * signs(shifted))
    same(x.grad, gy * inside)
    same(binarizer.b.grad, per_channel(gy * inside))
    same(binarizer.alpha.grad, (gy * signs(shifted)).sum().view(1) / math.sqrt(x.numel()))


def test_the_elastic_scale_starts_from_the_first_batch_in_training() -> None:
    binarizer = ElasticSign(2).double()
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    binarizer.eval()
    binarizer(x)
    assert binarizer.alpha.item() == 1.0
    binarizer.train()
    y = binarizer(x)
    same(binarizer.alpha.detach(), 2 * x.abs().mean().view(1))
    same(y.detach(), binarizer.alpha.detach() * signs(x))
    binarizer(10 * x)
    same(binarizer.alpha.detach(), 2 * x.abs().mean().view(1))
    fresh = ElasticSign(2).double()
    fresh.load_state_dict(binarizer.state_dict())
    fresh(10 * x)
    same(fresh.alpha.detach(), binarizer.alpha.detach())


def test_an_elastic_scale_below_zero_counts_as_the_smallest() -> None:
    binarizer = ElasticSign(1).eval()
    with torch.no_grad():
        binarizer.alpha.fill_(-2.0)
    assert binarizer(torch.ones(1, 1, 2)).tolist() == [[[pytest.approx(1e-5)] * 2]]


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_learned_levels(bits: int) -> None:
    binarizer = LearnedLevels(2, bits=bits).double().eval()
    basis = binarizer.basis.tolist()
    codes = [[1 if n >> i & 1 else -1 for i in range(bits)] for n in range(2**bits)]
    levels = sorted(sum(v * e for v, e in zip(basis, code, strict=True)) for code in codes)
    assert len(set(levels)) == 2**bits
    middles = [(a + b) / 2 for a, b in pairwise(levels)]
    edge = levels[-1]
    special = [*levels, *middles, edge + 1, -edge - 1, math.nextafter(edge, 9), 0.0]
    x = torch.tensor(special, dtype=torch.float64).view(1, 1, -1).repeat(1, 2, 1).requires_grad_()
    y, gy = run(binarizer, x)
    above = [sum(value >= middle for middle in middles) for value in special]
    same(y[0, 0], torch.tensor([levels[n] for n in above], dtype=torch.float64))
    same(x.grad, gy * torch.where(x.detach().abs() <= edge, 1.0, 0.0))


def test_learned_levels_follow_the_map_by_least_squares() -> None:
    binarizer = LearnedLevels(2, bits=2).double()
    old = binarizer.basis.clone()
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    y = binarizer(x)
    # The codes of the old basis, value by value.
    codes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 2)
    chosen = (x.view(-1, 1) - codes @ old).abs().argmin(1)
    same(y.view(-1), (codes @ old)[chosen])
    fresh = torch.linalg.lstsq(codes[chosen], x.view(-1, 1)).solution.view(-1)
    torch.testing.assert_close(binarizer.basis, 0.9 * old + 0.1 * fresh, rtol=1e-3, atol=1e-4)
    before = binarizer.basis.clone()
    binarizer.eval()(x)
    assert torch.equal(binarizer.basis, before)


def test_a_map_that_uses_one_level_leaves_the_basis_finite() -> None:
    binarizer = LearnedLevels(1, bits=3)
    for value in (0.0, 5.0):
        binarizer(torch.full((1, 1, 4), value))
        assert bool(binarizer.basis.isfinite().all())
    binarizer(torch.empty(0, 1, 4))


def ablated(x: Tensor, module: AblatedBinarizer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, x - beta, size and alpha by the table of the docstring."""
    x = x.detach()
    mean = x.mean((2, 3), keepdim=True)
    beta = torch.zeros_like(mean)
    if module.k is not None:
        beta = beta + module.k.detach().view(1, -1, 1, 1) * mean
    if module.b is not None:
        beta = beta + module.b.detach().view(1, -1, 1, 1)
    if module.k is not None:
        beta = beta - beta.abs() / 2**18  # ties are +1
    shifted = x - beta
    dims = (1, 2, 3) if module.scale == "layer" else (2, 3)
    size = shifted.abs().mean(dims, keepdim=True)
    alpha = {
        "adaptive": lambda: torch.exp(module.a.detach().view(1, -1, 1, 1) * (size - 1)),
        "learned": lambda: module.alpha.detach().view(1, -1, 1, 1).expand_as(size),
        "magnitude": lambda: size,
        "none": lambda: torch.ones_like(size),
    }[module.factor]()
    return mean, shifted, size, alpha


@pytest.mark.parametrize("scale", ["layer", "channel"])
@pytest.mark.parametrize("factor", ["adaptive", "learned", "magnitude", "none"])
@pytest.mark.parametrize("threshold", ["affine", "bias", "mean", "none"])
def test_ablations(threshold: str, factor: str, scale: str) -> None:
    module = AblatedBinarizer(3, threshold=threshold, factor=factor, scale=scale).double()
    assert (module.k is not None) == (threshold in ("affine", "mean"))
    assert (module.b is not None) == (threshold in ("affine", "bias"))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.2)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    x[0, 0] = 0.0
    # Without a threshold these are the surrogate's edges and their neighbours.
    x[1, 1, 0, :4] = torch.tensor([1.0, -1.0, BELOW, ABOVE], dtype=torch.float64)
    x.requires_grad_()
    y, gy = run(module, x)
    mean, shifted, size, alpha = ablated(x, module)
    same(y, alpha * signs(shifted))
    gradient = gy * alpha * polynomial(shifted)
    same(x.grad, gradient)
    if module.k is not None:
        same(module.k.grad, per_channel(-gradient * mean))
    if module.b is not None:
        same(module.b.grad, per_channel(-gradient))
    for parameter, slope in ((module.a, alpha * (size - 1)), (module.alpha, 1.0)):
        if parameter is not None:
            total = per_channel(gy * signs(shifted) * slope)
            same(parameter.grad, total if scale == "channel" else total.sum().view(1))
    assert module.popcount_exact == (scale == "layer" or factor == "none")


def test_with_nothing_ablated_it_is_the_adaptive_binarizer() -> None:
    for scale in ("layer", "channel"):
        module = AblatedBinarizer(3, scale=scale)
        dab = BINARIZERS["dab"](3, scale=scale)
        assert {k: v.shape for k, v in module.state_dict().items()} == {
            k: v.shape for k, v in dab.state_dict().items()
        }
        for parameter in dab.parameters():
            torch.nn.init.uniform_(parameter)
        module.load_state_dict(dab.state_dict())
        x = torch.randn(2, 3, 7, 5)
        torch.testing.assert_close(module(x), dab(x))


NAMES = sorted(BINARIZERS)


@pytest.mark.parametrize("name", NAMES)
def test_zero_is_positive_in_every_dtype(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        binarizer = BINARIZERS[name](2).to(dtype).eval()
        x = torch.zeros(1, 2, 3, dtype=dtype)
        x[:, :, 1] = -0.0
        y = binarizer(x)
        assert y.dtype == dtype
        assert y.shape == x.shape
        # Scales that depend on the feature map may be 0 for one of zeros.
        assert bool((y >= 0).all())


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_and_first_agree(name: str) -> None:
    first, last = BINARIZERS[name](3), BINARIZERS[name](3, channel_dim=-1)
    for parameter in first.parameters():
        torch.nn.init.uniform_(parameter, 0.2, 1.0)
    last.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(
        last.eval()(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), first.eval()(x)
    )


@pytest.mark.parametrize("name", NAMES)
def test_in_a_unit_popcount_is_exact_where_it_is_claimed(name: str) -> None:
    """One number per sample, times an integer: what counting bits gives."""
    unit = BiConv2d(4, 3, 3, unit=UnitSpec(binarizer=name, bypass=None)).double().eval()
    for parameter in unit.binarizer.parameters():
        torch.nn.init.uniform_(parameter, 0.2, 1.0)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    y = unit.binarizer(x)
    factor = y.abs().amax((1, 2, 3), keepdim=True)
    assert unit.binarizer.popcount_exact == torch.equal(y.abs(), factor.expand_as(y))
    assert unit.binarizer.bits == 1
    assert (unit.binarizer.threshold_form() is not None) or not unit.popcount_exact


@pytest.mark.parametrize("name", NAMES)
def test_a_unit_learns_and_accepts_empty_batches(name: str) -> None:
    for unit, x in (
        (BiConv2d(4, 6, 3, groups=2, unit=UnitSpec(binarizer=name)), torch.randn(2, 4, 5, 5)),
        (BiLinear(4, 6, unit=UnitSpec(binarizer=name)), torch.randn(2, 5, 4)),
    ):
        unit(x).square().sum().backward()
        for key, parameter in unit.named_parameters():
            assert parameter.grad is not None, key
            assert bool(parameter.grad.isfinite().all()), key
        unit.eval()
        assert unit(x[:0]).shape == (0, *unit(x).shape[1:])


@pytest.mark.parametrize(
    ("cls", "options", "said"),
    [
        (Sign, {"surrogate": "cosine"}, "use one of polynomial, clip"),
        (LearnedLevels, {"bits": 0}, "must be a whole number from 1 to 8"),
        (LearnedLevels, {"bits": 2.0}, "must be a whole number from 1 to 8"),
        (AblatedBinarizer, {"threshold": "median"}, "use one of affine, bias, mean, none"),
        (AblatedBinarizer, {"factor": "max"}, "use one of adaptive, learned, magnitude, none"),
        (AblatedBinarizer, {"scale": "image"}, "use one of layer, channel"),
    ],
)
def test_wrong_options_are_refused(cls: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BinarizeError, match=said) as raised:
        cls(2, **options)
    assert "\n" not in str(raised.value)
    with pytest.raises(BinarizeError, match="at least one channel"):
        cls(0)
