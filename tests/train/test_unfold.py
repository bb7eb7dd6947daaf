"""Folded norms have their scale back, and nothing else changes."""

from __future__ import annotations

import copy

import torch
from torch import nn

from binarize.train import unfold_norms


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def folded(network: nn.Module) -> nn.Module:
    """Norms as a file for inference has them, with some bias."""
    for norm in norms(network):
        nn.init.normal_(norm.bias)
    return network


def block() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
    )  # fmt: skip


def test_unfolding_changes_nothing_in_evaluation_and_repairs_training() -> None:
    network = folded(block())
    batch = torch.randn(16, 3, 12, 12)
    before = copy.deepcopy(network).eval()(batch)
    assert (network.train()(batch) - before).abs().mean() > 0.1  # the very problem
    network = folded_like(network, before=block())
    expected = network.eval()(batch)
    assert unfold_norms(network, [{"image": batch}]) == 2
    assert torch.allclose(network.eval()(batch), expected, atol=1e-4)
    assert torch.allclose(network.train()(batch), expected, atol=1e-4)


def folded_like(network: nn.Module, before: nn.Module) -> nn.Module:
    """A fresh copy with the same weights and biases, whose statistics nothing has touched."""
    fresh = {k: v for k, v in network.state_dict().items() if k.endswith(("weight", "bias"))}
    before.load_state_dict(fresh, strict=False)
    return before


def test_norms_that_are_not_folded_stay() -> None:
    network = block()
    before = copy.deepcopy(network.state_dict())
    assert unfold_norms(network, [{"image": torch.randn(4, 3, 8, 8)}]) == 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network = folded(block()).train()
    norms(network)[0].running_mean.fill_(0.5)
    assert unfold_norms(network, [{"image": torch.randn(4, 3, 8, 8)}]) == 1
    assert network.training


def test_without_images_nothing_changes() -> None:
    network = folded(block())
    before = copy.deepcopy(network.state_dict())
    assert unfold_norms(network, []) == 0
    assert unfold_norms(network, [torch.zeros(0, 3, 8, 8)]) == 0
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
