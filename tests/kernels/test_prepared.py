"""Counting by table look-ups, and the weights that are prepared for it."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from binarize.kernels import native, pack_weight, reference
from binarize.kernels.geometry import geometry
from binarize.kernels.prepared import PreparedWeights

SETS = native.status().usable
OUTPUTS = [9, 16, 32, 48, 64, 65]
MANY = [15 * 64, 16 * 64, 31 * 64, 33 * 64, 65 * 64]


def counting(
    x: Tensor,
    signs: Tensor,
    padding: tuple[int, ...] | None = None,
    stride: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    transposed: bool = False,
) -> dict[str, Any]:
    """Arguments of a unit that only counts."""
    dims = x.dim() - 2
    stride, dilation = stride or (1,) * dims, dilation or (1,) * dims
    outputs = signs.shape[1] * groups if transposed else signs.shape[0]
    more = {"stride": stride, "dilation": dilation, "groups": groups, "transposed": transposed}
    return {
        "sources": [x],
        "upsample": [1],
        "means": [],
        "weight": pack_weight(signs, **more),
        "gain": torch.ones(outputs),
        "offset": torch.zeros(outputs),
        "threshold": torch.zeros(x.shape[1]),
        "kernel": tuple(signs.shape[2:]),
        **more,
        "padding": padding or (0, 0) * dims,
        "padding_mode": "zeros",
        "output_padding": (0,) * dims,
        "bypass": "none",
        "bypass_offset": (0,) * dims,
        "residuals": [],
        "want_means": False,
        **dict.fromkeys(("mean_gain", "flip", "exponent")),
        **dict.fromkeys(("act_shift", "act_slope", "act_out_shift")),
    }


def check(values: dict[str, Any]) -> None:
    expected = reference.unit(**values)[0]
    for name in SETS:
        assert torch.equal(native.select(name)(**values)[0], expected), name


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("inputs", [3, 6, 8, 20, 32, 66])
def test_any_number_of_outputs(inputs: int, outputs: int) -> None:
    x, signs = torch.randn(2, inputs, 5, 7), torch.randn(outputs, inputs, 3, 3)
    check(counting(x, signs, (1, 1, 1, 1)))
    check(counting(x, signs, (2, 0, 1, 3), stride=(2, 1), dilation=(1, 2)))
    check(counting(x, signs.transpose(0, 1), stride=(2, 2), transposed=True))
    check(counting(x, signs[..., :1, :1]))


@pytest.mark.parametrize("groups", [2, 7])
@pytest.mark.parametrize("inputs", [1, 4, 6, 8])
@pytest.mark.parametrize("outputs", [9, 24, 33])
def test_any_groups(groups: int, inputs: int, outputs: int) -> None:
    x, signs = torch.randn(1, inputs * groups, 6, 5), torch.randn(outputs * groups, inputs, 3, 3)
    check(counting(x, signs, (1, 1, 1, 1), groups=groups))
    other = torch.randn(inputs * groups, outputs, 2, 3)
    check(counting(x, other, (0, 1, 1, 0), (2, 1), groups=groups, transposed=True))


@pytest.mark.parametrize(("inputs", "taps"), [(32, 5), (32, 2), (16, 4), (16, 5), (64, 3), (64, 1)])
@pytest.mark.parametrize("outputs", [8, 16, 24, 64])
def test_windows_whose_taps_end_where_a_word_ends(inputs: int, taps: int, outputs: int) -> None:
    x, signs = torch.randn(1, inputs, 9, 11), torch.randn(outputs, inputs, taps, taps)
    check(counting(x, signs))
    check(counting(x, signs, (taps // 2,) * 4))
    check(counting(x, signs, stride=(1, 2)))


@pytest.mark.parametrize("inputs", MANY)
@pytest.mark.parametrize("outputs", [8, 16, 32, 64])
def test_counters_hold_the_largest_counts(inputs: int, outputs: int) -> None:
    ones = torch.ones(outputs, inputs, 1, 1)
    for x in (torch.ones(1, inputs, 3, 3), -torch.ones(1, inputs, 3, 3)):
        check(counting(x, ones))
        check(counting(x, -ones))


@pytest.mark.parametrize("outputs", [8, 12, 20, 40])
def test_counters_of_more_than_16_bits(outputs: int) -> None:
    inputs = 2**17 + 4
    ones = torch.ones(outputs, inputs, 1)
    check(counting(torch.ones(1, inputs, 9), -ones))
    check(counting(torch.ones(1, inputs, 9), torch.randn(outputs, inputs, 1)))


@pytest.mark.parametrize("size", [1, 2, 4, 5, 7, 8, 9, 64, 65])
def test_any_number_of_pixels(size: int) -> None:
    for outputs in (16, 32, 64):
        x = torch.randn(1, 24, 1, size)
        check(counting(x, torch.randn(outputs, 24, 1, 1)))
        check(counting(x, torch.randn(outputs, 24, 3, 3), (1, 1, 1, 1)))


def test_rows_longer_than_one_thread_packs_at_a_time() -> None:
    for inputs, outputs in ((16, 16), (20, 12), (3, 32)):
        x = torch.randn(1, inputs, 3, 1100)
        check(counting(x, torch.randn(outputs, inputs, 3, 3), (1, 1, 1, 1)))


needs_tables = pytest.mark.skipif("avx2" not in SETS, reason="no set that counts by tables")


def layers() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(1, 32, 4, 4), torch.randn(32, 32, 3, 3), torch.randn(32, 32, 3, 3)


@needs_tables
@pytest.mark.parametrize("inference", [False, True])
def test_a_weight_that_changes_is_prepared_again(inference: bool) -> None:
    run = native.select("avx2")
    x, first, second = layers()
    with torch.inference_mode(inference):
        values, other = counting(x, first), counting(x, second)
        assert values["weight"].is_inference() == inference
        for _ in range(2):
            assert torch.equal(run(**values)[0], reference.unit(**values)[0])
        values["weight"].copy_(other["weight"])
        assert torch.equal(run(**values)[0], reference.unit(**other)[0])


@needs_tables
def test_a_weight_at_an_odd_address_is_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = PreparedWeights._make
    monkeypatch.setattr(
        PreparedWeights, "_make", lambda self, w, g: made.append(1) or make(self, w, g)
    )
    run = native.select("avx2")
    x, first, _ = layers()
    values = counting(x, first)
    odd = torch.empty(values["weight"].numel() + 1, dtype=torch.uint8)[1:]
    odd.copy_(values["weight"])
    expected = reference.unit(**values)[0]
    for _ in range(3):
        assert torch.equal(run(**values | {"weight": odd})[0], expected)
    assert len(made) == 1


@needs_tables
def test_prepared_weights_live_as_long_as_the_weights() -> None:
    x, first, _ = layers()
    values = counting(x, first)
    weights = PreparedWeights(native._load()[0], native.SETS["avx2"])
    order = "kernel stride padding dilation groups padding_mode transposed output_padding".split()
    g = geometry(
        ((1, 32, 4, 4),),
        ((512, 1, 128, 32),),
        (1,),
        32,
        *(values[name] for name in order),
        "none",
        (0, 0),
        (),
    )
    prepared = weights.get(values["weight"], g)
    assert prepared is not None
    assert weights.get(values["weight"], g) is prepared
    gone = weakref.ref(prepared)
    del prepared, values
    gc.collect()
    assert gone() is None
