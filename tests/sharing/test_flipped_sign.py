"""Flipped signs, against their definition."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from binarize.nn.weight_binarizers import FlippedSign, ScaledSign, SignWeight


def made(
    budget: float, shape: tuple[int, ...] = (6, 5, 3, 3), *, cls: type = ScaledSign
) -> tuple[FlippedSign, Tensor, Tensor]:
    """A quantizer, its initial latent weight, and the base's effective weight."""
    torch.manual_seed(0)
    weight = torch.randn(shape)
    inner = cls()
    quantizer = FlippedSign(inner, weight, budget)
    return quantizer, quantizer.latent(weight), inner(weight).detach()


@pytest.mark.parametrize("cls", [ScaledSign, SignWeight])
def test_starts_as_the_base(cls: type) -> None:
    quantizer, latent, base = made(0.1, cls=cls)
    assert torch.equal(quantizer.eval()(latent), base)
    assert not quantizer.flips(latent).any()
    assert quantizer.state_dict() == {}


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_chances_are_those_of_the_latent_weight(scale: float) -> None:
    """p = sigmoid(100 d), d the distance beyond zero on the other side."""
    quantizer, latent, base = made(0.5, (200, 100))
    distance = 0.01 * scale
    weight = -torch.sign(latent) * distance  # beyond zero, or exactly there
    differ = (quantizer.train()(weight) != base).float().mean()
    p = 1 / (1 + math.exp(-100 * distance))
    assert float(differ) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 20_000))


def test_flips_stay_within_the_budget_and_are_the_likeliest() -> None:
    quantizer, latent, base = made(0.1, (10, 10))
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    weight = latent.clone().flatten()
    for rank, place in enumerate(order[:30].tolist()):
        weight[place] = -weight[place] * (30 - rank)
    weight = weight.view_as(latent)
    flipped = quantizer.flips(weight)
    assert set(flipped.flatten().nonzero().flatten().tolist()) == set(order[:10].tolist())
    effective = quantizer.eval()(weight)
    assert torch.equal((effective != base).flatten(), flipped.flatten())
    assert torch.equal(effective.abs(), base.abs())


@pytest.mark.parametrize(("budget", "most"), [(0.0, 0), (0.009, 0), (0.01, 1), (1.0, 100)])
def test_budget_rounds_down(budget: float, most: int) -> None:
    quantizer, latent, _ = made(budget, (10, 10))
    assert int(quantizer.flips(-latent).sum()) == most


def test_fixed_flips_do_not_learn() -> None:
    quantizer, latent, base = made(0.5)
    weight = torch.nn.Parameter(latent)
    quantizer.train().set_progress(0.59)
    quantizer(weight).sum().backward()
    assert weight.grad is not None
    assert bool(weight.grad.any())
    quantizer.set_progress(0.6)
    assert not quantizer(weight).requires_grad
    assert torch.equal(quantizer(weight), base)


def test_gradient_leads_to_the_flip_that_lowers_the_loss() -> None:
    """A loss that falls with the weight moves latent weights up, whatever the base's sign."""
    quantizer, latent, _ = made(1.0)  # no penalty
    weight = torch.nn.Parameter(latent)
    (-quantizer.train()(weight)).sum().backward()
    assert weight.grad is not None
    assert bool((weight.grad <= 0).all())
    assert bool((weight.grad < 0).any())


def test_penalty_leads_back_to_the_base() -> None:
    """Flipped weights beyond the budget go back, unless the loss holds them."""
    quantizer, latent, _ = made(0.01, (100, 100))
    weight = torch.nn.Parameter(-0.5 * latent)
    signs = torch.where(torch.rand(100, 100) < 0.5, -1.0, 1.0)
    (quantizer.train()(weight) * signs).sum().backward()
    assert weight.grad is not None
    towards = -weight.grad * torch.sign(latent)
    assert float(towards.min()) > 0


@pytest.mark.parametrize("budget", [0.01, 0.05])
def test_finds_the_flips_that_pay_most(budget: float) -> None:
    """Weights gain different amounts, hidden in noise; the flips get most of what they could."""
    quantizer, latent, _ = made(budget, (100, 100))
    weight = torch.nn.Parameter(latent.clone())
    gains = torch.randn(100, 100) * 0.3 - 0.3
    optimizer = torch.optim.Adam([weight], lr=0.002)
    quantizer.train()
    for _ in range(250):
        optimizer.zero_grad()
        pull = torch.sign(latent) * (torch.randn(100, 100) - gains)
        (-(quantizer(weight) * pull)).sum().backward()
        optimizer.step()
    flipped = quantizer.flips(weight)
    count = int(budget * 10_000)
    assert count / 2 < int(flipped.sum()) <= count
    best = gains.flatten().topk(count).values.sum()
    assert float(gains[flipped].sum() / best) > 0.5
    # The penalty, not the cut at the end, keeps them few.
    assert float(((weight < 0) != (latent < 0)).float().mean()) < 3 * budget


def test_stored_as_the_base_is() -> None:
    quantizer, latent, _ = made(0.5)
    weight = latent.clone()
    weight[0, 0, 0] *= -1
    bits, scale = quantizer.pack(weight)
    plain = ScaledSign()
    again = plain(plain.unpack(bits, scale, weight))
    assert torch.equal(again, quantizer.eval()(weight))


@pytest.mark.parametrize("budget", [0.1, 1.0])
def test_channels_last_weights_flip_the_same(budget: float) -> None:
    quantizer, latent, _ = made(budget)
    weight = -latent * torch.rand(latent.shape)
    last = weight.to(memory_format=torch.channels_last)
    assert torch.equal(quantizer.flips(weight), quantizer.flips(last))
    quantizer.eval()
    assert torch.equal(quantizer(weight), quantizer(last))


def test_copies_are_independent() -> None:
    quantizer, latent, base = made(0.5)
    assert torch.equal(quantizer.eval()(latent), base)
    twin = copy.deepcopy(quantizer)
    assert torch.equal(twin(latent), base)
    latent.mul_(-1)  # in place: known signs are of the old values
    assert not torch.equal(quantizer(latent), base)


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        quantizer, latent, base = made(0.5)
        quantizer.eval()
        assert torch.equal(quantizer(latent), base)
        latent[0].mul_(-1)
        assert torch.equal(quantizer(latent)[0], -base[0])


def test_empty_weight() -> None:
    quantizer, latent, _ = made(0.1, (0, 4))
    assert quantizer.eval()(latent).shape == (0, 4)
    assert quantizer.train()(latent).shape == (0, 4)
