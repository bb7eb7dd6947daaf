"""Bit packing: one bit per sign, and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import binarize
from binarize.ops import pack_signs, sign, unpack_signs
from binarize.ops.bits import pack_bits, unpack_bits

QUIET = settings(max_examples=80, deadline=None, database=None, derandomize=True)


@QUIET
@given(st.lists(st.integers(0, 7), min_size=0, max_size=4), st.integers(0, 2**31))
def test_round_trip(shape: list[int], seed: int) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    signs = sign(values)
    bits = pack_signs(signs)
    assert bits.dtype == torch.uint8
    assert bits.shape == (math.ceil(signs.numel() / 8),)
    assert torch.equal(unpack_signs(bits, shape), signs)


@pytest.mark.parametrize("count", range(20))
def test_every_length_round_the_byte(count: int) -> None:
    for signs in (torch.ones(count), -torch.ones(count), sign(torch.randn(count))):
        assert torch.equal(unpack_signs(pack_signs(signs), (count,)), signs)


def test_every_bit_has_its_own_place() -> None:
    seen = set()
    for place in range(16):
        signs = -torch.ones(16)
        signs[place] = 1
        seen.add(tuple(pack_signs(signs).tolist()))
    assert len(seen) == 16
    assert {sorted(pair)[1] for pair in seen} == {2**i for i in range(8)}


def test_zero_and_nan_are_plus_one_as_in_sign() -> None:
    values = torch.tensor([0.0, -0.0, math.nan, -1e-30, 1e-30])
    assert unpack_signs(pack_signs(values), (5,)).tolist() == [1, 1, 1, -1, 1]


def test_unused_bits_do_not_depend_on_memory() -> None:
    signs = sign(torch.randn(3, 3))
    assert torch.equal(pack_signs(signs), pack_signs(signs.clone()))
    transposed = signs.t()
    assert torch.equal(unpack_signs(pack_signs(transposed), (3, 3)), transposed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_result_type(dtype: torch.dtype) -> None:
    signs = sign(torch.randn(11)).to(dtype)
    back = unpack_signs(pack_signs(signs), (11,), dtype)
    assert back.dtype == dtype
    assert torch.equal(back, signs)


@pytest.mark.parametrize("shape", [(15,), (17,), (2, 4), (0,)])
def test_wrong_number_of_bytes(shape: tuple[int, ...]) -> None:
    packed = pack_signs(torch.ones(30))
    with pytest.raises(binarize.BinarizeError, match=r"^packed=.*: .*; .*"):
        unpack_signs(packed, shape)


@pytest.mark.parametrize("shape", [(0,), (1,), (7, 3), (2, 3, 8)])
def test_bools(shape: tuple[int, ...]) -> None:
    bits = torch.rand(shape) < 0.5
    expected = np.packbits(bits.numpy(), bitorder="little")
    assert np.array_equal(pack_bits(bits).numpy(), expected)
    assert torch.equal(unpack_bits(pack_bits(bits), shape), bits)


def test_bools_of_any_memory_layout() -> None:
    bits = torch.rand(9, 17) < 0.5
    for view in (bits.t(), bits[1:, 3:], bits.flatten()[1:9], bits[:, ::2]):
        expected = np.packbits(view.contiguous().numpy(), bitorder="little")
        assert np.array_equal(pack_bits(view).numpy(), expected)
