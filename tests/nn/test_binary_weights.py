"""Binary weights: sign times a detached mean magnitude, straight-through gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from binarize.nn import (
    BiConv1d,
    BiConv2d,
    BiConv3d,
    BiConvTranspose1d,
    BiConvTranspose2d,
    BiConvTranspose3d,
    BiLinear,
    BinaryLayer,
    ScaledSign,
    UnitSpec,
)

PER_INPUT = UnitSpec(transposed_scale="input-channel")


def test_values_and_straight_through_gradient() -> None:
    above = math.nextafter(1.0, 2.0)
    weight = torch.tensor(
        [[0.0, -0.0, 0.5, -0.5], [1.0, -1.0, above, -above]], dtype=torch.float64
    ).requires_grad_()
    gw = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]], dtype=torch.float64)
    binary = ScaledSign()(weight)
    binary.backward(gw)
    scales = weight.detach().abs().mean(1)
    expected = torch.tensor([[1.0, 1, 1, -1], [1, -1, 1, -1]]).double() * scales[:, None]
    torch.testing.assert_close(binary.detach(), expected)
    # Not multiplied by the scale, nothing through the mean, edges included.
    assert weight.grad.tolist() == [[1.0, 2, 3, 4], [5, 6, 0, 0]]


def transposed_scale(weight: Tensor, groups: int) -> Tensor:
    """Mean magnitude per output channel of a transposed weight (in, out / groups, ...)."""
    scale = torch.empty_like(weight)
    rows = weight.shape[0] // groups
    for group in range(groups):
        for column in range(weight.shape[1]):
            block = weight[group * rows : (group + 1) * rows, column]
            scale[group * rows : (group + 1) * rows, column] = block.abs().mean()
    return scale


LAYERS: dict[str, BinaryLayer] = {
    "dense": BiConv2d(6, 8, 3),
    "pointwise": BiConv2d(6, 8, 1),
    "grouped": BiConv2d(6, 8, 3, groups=2),
    "depthwise": BiConv2d(6, 6, 3, groups=6),
    "1d": BiConv1d(4, 5, 3),
    "3d": BiConv3d(4, 5, 3),
    "linear": BiLinear(7, 9),
}
TRANSPOSED: dict[str, BinaryLayer] = {
    "2d": BiConvTranspose2d(6, 8, 3, 2),
    "grouped": BiConvTranspose2d(6, 8, 3, 2, groups=2),
    "depthwise": BiConvTranspose2d(6, 6, 2, 2, groups=6),
    "1d": BiConvTranspose1d(4, 5, 3),
    "3d": BiConvTranspose3d(4, 5, 2),
}


def effective(layer: BinaryLayer) -> Tensor:
    signs, scale = layer.binary_weight()
    assert signs.shape == layer.weight.shape
    assert set(signs.unique().tolist()) <= {-1.0, 1.0}
    return (signs * scale).detach()


@pytest.mark.parametrize("name", LAYERS)
def test_scale_per_output_channel(name: str) -> None:
    layer = LAYERS[name]
    weight = layer.weight.detach()
    expected = torch.where(weight >= 0, 1.0, -1.0) * weight.abs().flatten(1).mean(1).view(
        -1, *[1] * (weight.dim() - 1)
    )
    torch.testing.assert_close(effective(layer), expected)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_scale_per_output_channel(name: str) -> None:
    layer = TRANSPOSED[name]
    weight = layer.weight.detach()
    expected = torch.where(weight >= 0, 1.0, -1.0) * transposed_scale(weight, layer.groups)
    torch.testing.assert_close(effective(layer), expected)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_scale_per_input_channel(groups: int) -> None:
    layer = BiConvTranspose2d(6, 8, 3, 2, groups=groups, unit=PER_INPUT)
    weight = layer.weight.detach()
    expected = torch.where(weight >= 0, 1.0, -1.0) * weight.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(effective(layer), expected)


MORE = {
    **LAYERS,
    **{f"transposed {name}": layer for name, layer in TRANSPOSED.items()},
    "per input": BiConvTranspose2d(6, 8, 3, 2, groups=2, unit=PER_INPUT),
}


@pytest.mark.parametrize("name", MORE)
def test_packed_weights_reproduce_the_outputs_exactly(name: str) -> None:
    layer = MORE[name].eval()
    with torch.no_grad():
        layer.weight.view(-1)[0] = 0.0
    rank = layer.weight.dim() - 2
    size = (2, layer.weight.shape[1]) if rank == 0 else (2, layer.in_channels, *(7,) * rank)
    x = torch.randn(size)
    expected = layer(x)
    signs, scale = (part.detach().clone() for part in layer.binary_weight())
    bits, compact = layer.packed_weight()
    assert bits.dtype == torch.uint8
    assert bits.numel() == math.ceil(layer.weight.numel() / 8)
    assert compact.dim() == 1
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
    assert not torch.equal(layer(x), expected)
    layer.load_packed_weight(bits, compact)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.binary_weight()[0], signs)
    assert torch.equal(layer.binary_weight()[1], scale)
    again_bits, again_compact = layer.packed_weight()
    assert torch.equal(again_bits, bits)
    assert torch.equal(again_compact, compact)
    assert isinstance(layer.weight, torch.nn.Parameter)
    assert layer.weight.requires_grad


def test_a_slice_of_zeros_keeps_its_signs_through_packing() -> None:
    layer = BiConv2d(3, 4, 3).eval()
    with torch.no_grad():
        layer.weight[1] = 0.0
    x = torch.randn(1, 3, 5, 5)
    expected = layer(x)
    assert torch.isfinite(expected).all()
    layer.load_packed_weight(*layer.packed_weight())
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("seed", range(5))
def test_packing_is_exact_for_many_magnitudes(seed: int) -> None:
    torch.manual_seed(seed)
    layer = BiConv2d(37, 50, 3)
    with torch.no_grad():
        layer.weight.mul_(10.0 ** torch.randint(-6, 3, (50, 1, 1, 1)))
    before = effective(layer)
    layer.load_packed_weight(*layer.packed_weight())
    assert torch.equal(effective(layer), before)


def test_weight_is_initialised_as_the_float_layer() -> None:
    torch.manual_seed(3)
    unit = BiConv2d(4, 6, 3)
    torch.manual_seed(3)
    assert torch.equal(unit.weight, torch.nn.Conv2d(4, 6, 3, bias=False).weight)
