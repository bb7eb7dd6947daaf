"""Recalibration gives the statistics of the data, and touches nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from binarize.errors import DataError, ModelError
from binarize.train import recalibrate
from binarize.train.norms import has_statistics


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.03), nn.ReLU(), nn.Dropout(0.5)
    )


def test_statistics_are_the_average_over_the_batches() -> None:
    network = _network().double()
    network[1].running_mean.fill_(99)
    network[1].num_batches_tracked.fill_(4)  # as after a training
    batches = [torch.randn(n, 3, 6, 7, dtype=torch.float64) * n for n in (2, 3, 5)]
    assert recalibrate(network, batches) is network
    outputs = [network[0](batch).transpose(0, 1).flatten(1) for batch in batches]
    mean = torch.stack([output.mean(1) for output in outputs]).mean(0)
    variance = torch.stack([output.var(1) for output in outputs]).mean(0)
    assert torch.allclose(network[1].running_mean, mean, rtol=1e-12)
    assert torch.allclose(network[1].running_var, variance, rtol=1e-12)
    assert network[1].num_batches_tracked == 3


def test_nothing_else_changes() -> None:
    network = _network()
    network[2].eval()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    parameters = {name: value.clone() for name, value in network.named_parameters()}
    flags = [module.training for module in network.modules()]
    recalibrate(network, [torch.randn(2, 3, 6, 6)])
    assert [module.training for module in network.modules()] == flags
    assert network[1].momentum == 0.03
    assert all(torch.equal(value, parameters[name]) for name, value in network.named_parameters())
    assert all(value.grad is None for value in network.parameters())
    assert network[1].weight.requires_grad


def test_dropout_is_off() -> None:
    """Norms behind a dropout see what they will see in use."""
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3))
    batch = torch.randn(2, 3, 5, 5)
    recalibrate(network, [batch])
    assert torch.allclose(network[1].running_mean, batch.mean((0, 2, 3)), atol=1e-6)


def test_batches_of_all_kinds() -> None:
    images = torch.randn(4, 3, 6, 6)
    expected = recalibrate(nn.Sequential(nn.BatchNorm2d(3)), [images])[0].running_mean
    for batch in ((images, torch.zeros(4)), [images], {"image": images, "mask": 0}):
        network = nn.Sequential(nn.SyncBatchNorm(3))
        assert torch.equal(recalibrate(network, iter([batch]))[0].running_mean, expected)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches='list': is empty; give at least one batch of images"),
        ([torch.zeros(2, 3, 4, 4, dtype=torch.uint8)], "image='torch.uint8': images must be"),
        ([torch.zeros(3, 4, 4)], r"image=\(3, 4, 4\): must have shape \(N, C, H, W\); add the"),
        ([{"mask": torch.zeros(1)}], "batch='dict': has no images; give a tensor, a tuple that"),
        (
            [torch.zeros(1, 3, 3, 3)],
            "batch size=1: a BatchNorm on a 1x1 feature map needs at least two",
        ),
        ([torch.randn(2, 3, 6, 6), ()], "batch='tuple': has no images"),
    ],
)
def test_a_failure_leaves_the_network_as_it_was(batches, message: str) -> None:
    network = _network()
    network[1].running_mean.fill_(7)
    network[1].num_batches_tracked.fill_(5)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(DataError, match=message):
        recalibrate(network, batches)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert network[1].momentum == 0.03
    assert network.training
    assert network[3].training


def test_only_what_keeps_running_statistics_is_estimated() -> None:
    class Logger(nn.Identity):
        def observe(self, x: torch.Tensor) -> None:
            pytest.fail("it is no norm")

    frozen = nn.BatchNorm2d(3, track_running_stats=False)
    assert [has_statistics(m) for m in (Logger(), frozen, nn.BatchNorm2d(3))] == [
        False,
        False,
        True,
    ]
    recalibrate(nn.Sequential(Logger(), nn.BatchNorm2d(3)), [torch.randn(2, 3, 4, 4)])


def test_a_network_without_batch_norm() -> None:
    with pytest.raises(ModelError) as caught:
        recalibrate(nn.Conv2d(3, 3, 1), [torch.zeros(1, 3, 2, 2)])
    assert str(caught.value) == (
        "model='Conv2d': has no BatchNorm with running statistics, "
        "and no 8-bit layer; omit recalibrate; there is nothing to estimate"
    )
    with pytest.raises(ModelError, match="has no BatchNorm with running statistics"):
        recalibrate(nn.BatchNorm2d(3, track_running_stats=False), [torch.zeros(2, 3, 2, 2)])
