"""sign: two values in the forward pass, a surrogate in the backward pass."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import binarize
from binarize.ops import sign
from binarize.ops.sign import polynomial_gradient_

QUIET = settings(max_examples=50, deadline=None, database=None, derandomize=True)
JUST_BELOW, JUST_ABOVE = math.nextafter(1.0, 0.0), math.nextafter(1.0, 2.0)


def surrogate_gradient(values: list[float], surrogate: str, dtype: torch.dtype) -> torch.Tensor:
    x = torch.tensor(values, dtype=dtype, requires_grad=True)
    # Unequal incoming gradients, so that a surrogate which ignores them is seen.
    incoming = torch.arange(1, len(values) + 1, dtype=dtype)
    sign(x, surrogate).backward(incoming)
    assert x.grad is not None
    return x.grad / incoming


def test_every_value_becomes_minus_or_plus_one() -> None:
    x = torch.tensor(
        [0.0, -0.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 3.0, -3.0], dtype=torch.float32
    )
    expected = [1.0, 1.0, 1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0]
    assert sign(x).tolist() == expected
    assert sign(x, "clip").tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("surrogate", ["polynomial", "clip"])
def test_shape_and_dtype_stay(dtype: torch.dtype, surrogate: str) -> None:
    x = torch.randn(2, 3, 4).to(dtype).requires_grad_()
    y = sign(x, surrogate)
    assert y.shape == x.shape
    assert y.dtype == dtype
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_empty_and_scalar_tensors() -> None:
    assert sign(torch.zeros(0, 3)).shape == (0, 3)
    assert sign(torch.tensor(-0.5)).item() == -1.0


def test_input_is_left_alone() -> None:
    x = torch.randn(50)
    before = x.clone()
    sign(x)
    assert torch.equal(x, before)


def test_polynomial_surrogate_is_the_triangle() -> None:
    """ApproxSign: (2 - 2|x|) where |x| < 1, else 0."""
    values = [0.0, -0.0, 0.25, -0.25, JUST_BELOW, -JUST_BELOW, 1.0, -1.0, JUST_ABOVE, -2.0, 50.0]
    expected = [2.0, 2.0, 1.5, 1.5, 2 - 2 * JUST_BELOW, 2 - 2 * JUST_BELOW, 0, 0, 0, 0, 0]
    gradient = surrogate_gradient(values, "polynomial", torch.float64)
    torch.testing.assert_close(
        gradient, torch.tensor(expected, dtype=torch.float64), atol=0, rtol=0
    )


def test_clip_surrogate_includes_its_edges() -> None:
    """Straight-through estimator: 1 where |x| <= 1, else 0."""
    values = [0.0, -0.0, 0.25, -0.25, JUST_BELOW, 1.0, -1.0, JUST_ABOVE, -JUST_ABOVE, 50.0]
    expected = [1.0, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert surrogate_gradient(values, "clip", torch.float64).tolist() == expected


def test_the_default_surrogate_is_the_one_for_activations() -> None:
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    sign(one).sum().backward()
    sign(other, "polynomial").sum().backward()
    assert torch.equal(one.grad, other.grad)


@QUIET
@given(st.lists(st.floats(-3, 3, width=64), min_size=1, max_size=20))
def test_surrogates_agree_with_their_formulas(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    polynomial = torch.where(x.abs() < 1, 2 - 2 * x.abs(), 0.0)
    torch.testing.assert_close(
        surrogate_gradient(values, "polynomial", torch.float64), polynomial, atol=1e-15, rtol=1e-14
    )
    clip = (x.abs() <= 1).double()
    torch.testing.assert_close(surrogate_gradient(values, "clip", torch.float64), clip)


# Dynamo instantiates the autograd function by itself, which torch warns about.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("surrogate", ["polynomial", "clip"])
def test_compiles_with_gradients(surrogate: str) -> None:
    x = torch.linspace(-2, 2, 41)
    eager, compiled = x.clone().requires_grad_(), x.clone().requires_grad_()
    step = torch.compile(lambda t: sign(t, surrogate) * 3, fullgraph=True, backend="aot_eager")
    (sign(eager, surrogate) * 3).sum().backward()
    step(compiled).sum().backward()
    assert torch.equal(eager.grad, compiled.grad)


def test_mistakes_are_told_in_one_line() -> None:
    with pytest.raises(binarize.BinarizeError, match=r"^surrogate='polinomial': .*polynomial"):
        sign(torch.zeros(2), "polinomial")
    with pytest.raises(binarize.BinarizeError, match=r"^x=torch\.int64: .*floating.*; .*float"):
        sign(torch.zeros(2, dtype=torch.int64))


def test_the_polynomial_gradient_is_written_into_the_magnitudes() -> None:
    x = torch.tensor([[-2.0, -1.0, -0.25], [0.0, 0.5, 1.5]], dtype=torch.float64)
    grad, scale = torch.randn_like(x), torch.tensor([[2.0], [0.5]], dtype=torch.float64)
    expected = grad * scale * torch.tensor([[0, 0, 1.5], [2, 1, 0]], dtype=torch.float64)
    size = x.abs()
    assert polynomial_gradient_(size, grad, scale) is size
    torch.testing.assert_close(size, expected)
