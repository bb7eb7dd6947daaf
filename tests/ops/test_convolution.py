"""Sums of signs, scaled afterwards, against convolutions of scaled values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from binarize.ops.convolution import Geometry, binary_convolution, convolve, sample_magnitude

GEOMETRIES: dict[str, tuple[Geometry, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (Geometry(), (2, 3, 5, 4), (6, 4)),
    "rows": (Geometry(), (3, 4), (6, 4)),
    "1-D": (Geometry((2,), (1,), (1,), False, (0,), 1), (2, 4, 9), (6, 4, 3)),
    "2-D": (Geometry((2, 1), (2, 0), (2, 1), False, (0, 0), 2), (2, 4, 6, 5), (6, 2, 3, 3)),
    "padded unevenly": (
        Geometry((2, 2), (0, 0), (1, 1), False, (0, 0), 1, (1, 2, 0, 3)),
        (2, 4, 6, 5),
        (6, 4, 3, 3),
    ),
    "transposed": (
        Geometry((2, 2), (1, 1), (1, 1), True, (1, 1), 2),
        (2, 4, 6, 5),
        (4, 3, 3, 3),
    ),
}


def binary(shape: tuple[int, ...], scale: Tensor) -> Tensor:
    return torch.where(torch.rand(shape) < 0.5, -1.0, 1.0).to(scale.dtype) * scale


def operands(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Map, weight, and the factor of their sums."""
    geometry, of_map, of_weight = GEOMETRIES[name]
    alpha = torch.rand(of_map[0], *[1] * (len(of_map) - 1), dtype=dtype) + 0.1
    channels = of_weight[1] * geometry.groups if geometry.transposed else of_weight[0]
    scale = torch.rand(channels, dtype=dtype) + 0.1
    rest = [1] * (len(of_weight) - 2)
    if geometry.transposed:
        rows = of_weight[0] // geometry.groups
        spread = scale.view(geometry.groups, -1).repeat_interleave(rows, 0)
        spread = spread.view(of_weight[0], -1, *rest)
    else:
        spread = scale.view(-1, 1, *rest)
    factor = alpha * scale.view([-1] + [1] * len(geometry.stride))
    return binary(of_map, alpha), binary(of_weight, spread), factor


@pytest.mark.parametrize("name", GEOMETRIES)
def test_values_and_gradients_are_those_of_the_scaled_values(name: str) -> None:
    geometry = GEOMETRIES[name][0]
    x, weight, _ = operands(name, torch.float64)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    y = binary_convolution(x, weight, geometry, sample_magnitude(x))
    expected = convolve(x, weight, geometry)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    for leaf in leaves:
        (ours,) = torch.autograd.grad(y, leaf, grad, retain_graph=True)
        (theirs,) = torch.autograd.grad(expected, leaf, grad, retain_graph=True)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_sums_are_whole_numbers_times_one_factor(name: str) -> None:
    geometry = GEOMETRIES[name][0]
    x, weight, factor = operands(name, torch.float32)
    counts = convolve(x.sign().double(), weight.sign().double(), geometry).float()
    assert torch.equal(counts, counts.round())
    y = binary_convolution(x, weight, geometry, sample_magnitude(x))
    assert torch.equal(y, counts * factor)


def test_a_scale_of_zero_gives_zero() -> None:
    x, weight = binary((2, 4, 3), torch.tensor(0.0)), binary((6, 4, 1), torch.tensor(0.5))
    geometry = Geometry((1,), (0,), (1,), False, (0,), 1)
    assert not binary_convolution(x, weight, geometry, sample_magnitude(x)).any()
    assert not binary_convolution(x + 1, weight * 0, geometry, sample_magnitude(x + 1)).any()
