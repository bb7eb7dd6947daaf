"""Which parameters decay, and the schedule."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from binarize.errors import ModelError
from binarize.train.optimizer import make_optimizer, make_scheduler, parameter_groups


class _Threshold(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.table = nn.Parameter(torch.zeros(4, 2))


class _Binary(nn.Module):
    """A 1-bit layer as the trainer knows one: by its ``binary_weight`` method."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4, 3, 3))
        self.binarizer = _Threshold()
        self.norm = nn.BatchNorm2d(4)

    def binary_weight(self) -> tuple[Tensor, Tensor]:
        return self.weight.sign(), self.weight.abs().mean()


def test_groups() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), _Binary(), nn.PReLU(4), nn.Linear(4, 2))
    network[3].weight.requires_grad_(False)
    groups = {group["name"]: group for group in parameter_groups(network, 0.1, 0.001)}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    members = {
        name: {names[id(parameter)] for parameter in group["params"]}
        for name, group in groups.items()
    }
    assert members == {
        "decayed": {"0.weight"},
        "latent": {"1.weight"},
        "plain": {
            "0.bias",
            "1.binarizer.k",
            "1.binarizer.table",
            "1.norm.weight",
            "1.norm.bias",
            "2.weight",
            "3.bias",
        },
    }
    decay = {name: group["weight_decay"] for name, group in groups.items()}
    assert decay == {"decayed": 0.1, "latent": 0.001, "plain": 0.0}


def test_a_single_number_does_not_decay() -> None:
    network = nn.Linear(2, 3, bias=False)
    for name, shape in (("scalar", ()), ("gain", (1,)), ("one", (1, 1))):
        network.register_parameter(name, nn.Parameter(torch.ones(shape)))
    decayed, plain = parameter_groups(network, 0.1)
    assert [value is network.weight for value in decayed["params"]] == [True]
    assert {id(value) for value in plain["params"]} == {
        id(value) for value in (network.scalar, network.gain, network.one)
    }


def test_nothing_to_train() -> None:
    network = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ModelError) as caught:
        parameter_groups(network)
    assert str(caught.value) == (
        "student='Linear': has no trainable parameter; set requires_grad on the parameters to train"
    )


def test_one_cycle() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), 0.1, 0.0, 0.0)
    scheduler = make_scheduler(optimizer, 0.1, 20, 0.25)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(rates) < 20 else None
    assert rates.index(max(rates)) == 4
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] < 1e-4
