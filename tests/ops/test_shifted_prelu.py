"""Shifted PReLU: values and gradients of ``prelu(x + shift, slope) + out_shift``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from binarize.ops.shifted_prelu import shifted_prelu

SHAPES = {
    "map": ((2, 3, 5, 4), 1),
    "channels last": ((2, 5, 4, 3), -1),
    "rows": ((6, 3), -1),
    "volume": ((2, 3, 2, 3, 2), 1),
    "empty": ((0, 3, 5, 4), 1),
}


def composed(x: Tensor, shift: Tensor, slope: Tensor, out_shift: Tensor | None, dim: int) -> Tensor:
    u = x.movedim(dim, -1) + shift
    y = torch.where(u > 0, u, slope * u)
    return (y if out_shift is None else y + out_shift).movedim(-1, dim)


@pytest.mark.parametrize("two_shifts", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients(name: str, two_shifts: bool) -> None:
    shape, dim = SHAPES[name]
    x = torch.randn(shape, dtype=torch.float64)
    shift = torch.tensor([0.3, -0.2, 0.0]).double()
    slope = torch.tensor([0.25, -0.5, 1.5]).double()
    if x.numel():
        # A value on the kink.
        x.select(dim, 2)[(0,) * (x.dim() - 1)] = 0.0
    out_shift = torch.tensor([0.1, 0.2, -0.3]).double() if two_shifts else None
    leaves = [t.requires_grad_() for t in (x, shift, slope, out_shift) if t is not None]
    y = shifted_prelu(x, shift, slope, out_shift, dim)
    expected = composed(x, shift, slope, out_shift, dim)
    assert y.shape == x.shape
    torch.testing.assert_close(y, expected)
    gy = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    torch.testing.assert_close(
        torch.autograd.grad(y, leaves, gy), torch.autograd.grad(expected, leaves, gy)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_with_single_precision_parameters(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    x = torch.randn(4, 3, 16, 16).to(dtype)
    parameters = [torch.tensor(v).requires_grad_() for v in ([0.1] * 3, [0.25] * 3, [0.2] * 3)]
    leaves = [x.requires_grad_(), *parameters]
    y = shifted_prelu(*leaves)
    assert y.dtype == dtype
    gy = torch.randn(x.shape).to(dtype)
    got = torch.autograd.grad(y, leaves, gy)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    wanted = torch.autograd.grad(composed(*exact, 1), exact, gy.double())
    assert [g.dtype for g in got] == [dtype, *[torch.float32] * 3]
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=0.3, rtol=0.02)


def test_frozen_parameters_and_second_backward() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    shift, slope, out_shift = (torch.full((3,), v) for v in (0.1, 0.25, 0.2))
    y = shifted_prelu(x, shift, slope, out_shift).square().sum()
    (first,) = torch.autograd.grad(y, x, retain_graph=True)
    (second,) = torch.autograd.grad(y, x)
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 40])
def test_memory_layout_changes_nothing(channels: int, dtype: torch.dtype) -> None:
    x = torch.randn(2, channels, 5, 4, dtype=dtype)
    parameters = [torch.randn(channels, dtype=dtype, requires_grad=True) for _ in range(3)]
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        leaf = x.clone(memory_format=memory_format).requires_grad_()
        y = shifted_prelu(leaf, *parameters)
        assert y.is_contiguous(memory_format=memory_format)
        leaves = [leaf, *parameters]
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    torch.testing.assert_close(*results)
