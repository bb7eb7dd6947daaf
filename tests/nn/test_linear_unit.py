"""The linear unit is the 1x1 convolution unit on channels-last tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from binarize.nn import BiConv2d, BiLinear, UnitSpec

SPECS = {
    "paper": UnitSpec(),
    "released": UnitSpec(binarizer_options={"scale": "channel"}, bypass="interleaved"),
}


def pair(features: tuple[int, int], spec: str) -> tuple[BiLinear, BiConv2d]:
    linear = BiLinear(*features, unit=SPECS[spec]).double()
    with torch.no_grad():
        for parameter in [*linear.binarizer.parameters(), *linear.norm.parameters()]:
            parameter.copy_(torch.randn_like(parameter) * 0.3 + 0.5)
    conv = BiConv2d(*features, 1, unit=SPECS[spec]).double()
    state = {
        key: value.view_as(dict(conv.state_dict())[key])
        for key, value in linear.state_dict().items()
    }
    conv.load_state_dict(state)
    return linear, conv


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.flatten() for name, p in module.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("features", [(8, 8), (8, 32), (32, 8), (6, 10), (10, 6), (4, 9), (5, 1)])
@pytest.mark.parametrize("spec", SPECS)
def test_equals_the_pointwise_convolution(
    spec: str, features: tuple[int, int], training: bool
) -> None:
    linear, conv = pair(features, spec)
    linear.train(training)
    conv.train(training)
    x = torch.randn(2, 5, 3, features[0], dtype=torch.float64)
    one, other = x.clone().requires_grad_(), x.permute(0, 3, 1, 2).clone().requires_grad_()
    y, expected = linear(one), conv(other)
    torch.testing.assert_close(y, expected.permute(0, 2, 3, 1))
    gy = torch.randn_like(y)
    y.backward(gy)
    expected.backward(gy.permute(0, 3, 1, 2))
    torch.testing.assert_close(one.grad, other.grad.permute(0, 2, 3, 1))
    ours, theirs = gradients(linear), gradients(conv)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], msg=name)
    torch.testing.assert_close(linear.norm.running_mean, conv.norm.running_mean)
    torch.testing.assert_close(linear.norm.running_var, conv.norm.running_var)


@pytest.mark.parametrize("positions", [(), (7,), (3, 4), (2, 3, 4)])
def test_any_number_of_positions(positions: tuple[int, ...]) -> None:
    linear = BiLinear(6, 10)
    for samples in (3, 1):
        x = torch.randn(samples, *positions, 6)
        linear.train(samples > 1)
        assert linear(x).shape == (samples, *positions, 10)


@pytest.mark.parametrize("positions", [(), (7,), (3, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch(positions: tuple[int, ...], training: bool) -> None:
    linear = BiLinear(6, 10).train(training)
    assert linear(torch.zeros(0, *positions, 6)).shape == (0, *positions, 10)


def test_statistics_are_over_the_positions_of_one_sample() -> None:
    linear = BiLinear(4, 4).double().eval()
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    alone = torch.cat([linear(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(linear(x), alone)
    binary = linear.binarizer(x)
    expected = torch.where(x >= x.mean(1, keepdim=True), 1.0, -1.0).double()
    torch.testing.assert_close(binary.sign(), expected)


def test_norm_is_over_channels() -> None:
    linear = BiLinear(4, 12, bypass=False).train()
    y = linear(torch.randn(5, 9, 4))
    torch.testing.assert_close(y.mean((0, 1)), torch.zeros(12), atol=1e-5, rtol=0)
