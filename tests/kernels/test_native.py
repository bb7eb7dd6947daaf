"""The native kernels against plain torch: every instruction set that this machine can run.

Counts are integers: with gain 1, offset 0 and no bypass the results must be equal, not close.
"""

from __future__ import annotations

import mmap
import os
import random
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from binarize.errors import BinarizeError, SlowWarning
from binarize.kernels import native, openmp, pack_weight, reference
from binarize.kernels.codes import plain_codes
from binarize.kernels.geometry import output_size

SETS = native.status().usable
CHANNELS = [1, 2, 3, 15, 16, 17, 63, 64, 65, 97]
SQUARE: dict[str, Any] = {"kernel": (3, 3), "padding": (1, 1, 1, 1)}


@pytest.fixture(autouse=True)
def threads_for_small_maps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, one thread would process the small feature maps of these tests."""
    monkeypatch.setattr(native, "SERIAL_WORK", 0)


def test_library_is_there_in_continuous_integration() -> None:
    """A package that silently fell back to plain torch does not pass."""
    found = native.status()
    if found.library is None and not os.environ.get("CI"):
        pytest.skip(f"no C library: {found.problem}")
    assert found.library is not None, found.problem
    assert "scalar" in found.usable
    assert found.active in found.usable or os.environ.get(native.ENVIRONMENT)


def test_missing_kernels_are_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_load", lambda: (None, None, "no compiler worked"))
    native.implementation.cache_clear()
    try:
        monkeypatch.setenv(native.ENVIRONMENT, "reference")
        native.implementation()  # requested
        native.implementation.cache_clear()
        monkeypatch.delenv(native.ENVIRONMENT)
        with pytest.warns(SlowWarning, match="run on plain torch, which is slow: no compiler wor"):
            native.implementation()
        native.implementation()  # once
    finally:
        native.implementation.cache_clear()


def plain(
    sources: list[Tensor],
    out_channels: int,
    kernel: tuple[int, ...] = (1, 1),
    stride: tuple[int, ...] | None = None,
    padding: tuple[int, ...] | None = None,
    dilation: tuple[int, ...] | None = None,
    groups: int = 1,
    transposed: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Arguments of a unit that only counts; ``more`` adds the rest."""
    dims, channels = len(kernel), sum(x.shape[1] for x in sources)
    ones = (1,) * dims
    stride, dilation = stride or ones, dilation or ones
    first, second = (channels, out_channels) if transposed else (out_channels, channels)
    signs = torch.randn(first, second // groups, *kernel)
    values = {
        "sources": sources,
        "upsample": [1] * len(sources),
        "means": [],
        "weight": pack_weight(
            signs, stride=stride, dilation=dilation, groups=groups, transposed=transposed
        ),
        "gain": torch.ones(out_channels),
        "offset": torch.zeros(out_channels),
        "mean_gain": None,
        "threshold": torch.randn(channels) / 4,
        "flip": None,
        "exponent": None,
        "kernel": kernel,
        "stride": stride,
        "padding": padding or (0, 0) * dims,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": "zeros",
        "transposed": transposed,
        "output_padding": (0,) * dims,
        "bypass": "none",
        "bypass_offset": (0,) * dims,
        "residuals": [],
        "act_shift": None,
        "act_slope": None,
        "act_out_shift": None,
        "want_means": False,
    }
    assert more.keys() <= values.keys()
    return values | more


def everything(values: dict[str, Any], seed: int) -> dict[str, Any]:
    """The same convolution with all that can come before and after it, drawn by ``seed``."""
    draw = random.Random(seed)
    sources, out_channels = values["sources"], values["gain"].numel()
    channels, dims = values["threshold"].numel(), len(values["kernel"])
    size = [s * values["upsample"][0] for s in sources[0].shape[2:]]
    geometry = (values[k] for k in ("kernel", "stride", "padding", "dilation", "transposed"))
    out = output_size(size, *geometry, values["output_padding"])

    def maybe(n: int) -> Tensor | None:
        return torch.randn(n) if draw.random() < 0.6 else None

    def residual() -> Tensor:
        return torch.randn(sources[0].shape[0], *out, out_channels).movedim(-1, 1)

    mean_gain = maybe(channels)
    means = [x.mean(list(range(2, 2 + dims))) for x in sources] if draw.random() < 0.5 else []
    return values | {
        "means": means,
        "gain": torch.randn(out_channels) / 8,
        "offset": torch.randn(out_channels),
        "mean_gain": mean_gain,
        "flip": torch.rand(channels) < 0.5 if draw.random() < 0.3 else None,
        "exponent": torch.randn(()) / 2 if draw.random() < 0.7 else None,
        "bypass": draw.choice(["none", "contiguous", "interleaved"]),
        "bypass_offset": [draw.randint(-1, 2) for _ in range(dims)],
        "residuals": [residual() for _ in range(draw.randint(0, 2))],
        "act_shift": maybe(out_channels),
        "act_slope": maybe(out_channels),
        "act_out_shift": maybe(out_channels),
        "want_means": True,
    }


def check(values: dict[str, Any], *, exact: bool) -> None:
    # One mean for all, as another order of summing may move a value over the threshold.
    if values["mean_gain"] is not None:
        positions = list(range(2, values["sources"][0].dim()))
        values = values | {"means": [x.mean(positions) for x in values["sources"]]}
    expected = reference.unit(**values)
    for name in SETS:
        found = native.select(name)(**values)
        for got, wanted in zip(found, expected, strict=True):
            assert got.shape == wanted.shape
            assert got.stride() == wanted.stride()
            if exact:
                assert torch.equal(got, wanted), name
            else:
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4, msg=name)


def nhwc(*shape: int) -> Tensor:
    return torch.randn(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


@pytest.mark.parametrize("inputs", CHANNELS)
@pytest.mark.parametrize("outputs", [1, 8, 17, 33, 64])
def test_any_number_of_channels(inputs: int, outputs: int) -> None:
    x = [nhwc(2, inputs, 5, 4)]
    check(plain(x, outputs, **SQUARE), exact=True)
    check(everything(plain(x, outputs, **SQUARE), inputs), exact=False)
    check(plain(x, outputs), exact=True)


@pytest.mark.parametrize("taps", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("channels", [16, 64, 97])
def test_any_window(taps: int, stride: int, dilation: int, channels: int) -> None:
    x = [nhwc(1, channels, 13, 14)]
    values: dict[str, Any] = {
        "kernel": (taps, taps),
        "stride": (stride,) * 2,
        "dilation": (dilation,) * 2,
    }
    for padding in ((0, 0, 0, 0), (taps // 2,) * 4, (0, 1, 2, 3)):
        check(plain(x, 24, **values, padding=padding), exact=True)
    check(everything(plain(x, 24, **values, padding=(1, 0, 0, 1)), taps), exact=False)


@pytest.mark.parametrize("groups", [2, 3, 5])
@pytest.mark.parametrize("inputs", [1, 2, 16, 17, 64, 65])
@pytest.mark.parametrize("outputs", [1, 4, 9])
def test_any_groups(groups: int, inputs: int, outputs: int) -> None:
    x = [nhwc(1, inputs * groups, 5, 6)]
    check(plain(x, outputs * groups, groups=groups, **SQUARE), exact=True)
    check(everything(plain(x, outputs * groups, groups=groups), inputs), exact=False)


@pytest.mark.parametrize("channels", [*CHANNELS[1:], 512, 520])
@pytest.mark.parametrize("taps", [1, 3, 4, 7])
def test_depthwise(channels: int, taps: int) -> None:
    x = [nhwc(2, channels, 8, 9)]
    values = {"kernel": (taps, taps), "groups": channels, "padding": (taps // 2,) * 4}
    check(plain(x, channels, **values), exact=True)
    check(plain(x, channels, **values, stride=(2, 3), dilation=(2, 1)), exact=True)
    check(everything(plain(x, channels, **values, stride=(2, 1)), channels), exact=False)
    check(plain(x, channels, **values, transposed=True, stride=(2, 3)), exact=True)


def test_depthwise_with_more_taps_than_a_step_holds() -> None:
    check(plain([nhwc(1, 70, 40, 2)], 70, (35, 35), padding=(17,) * 4, groups=70), exact=True)
    check(plain([nhwc(1, 3, 40, 40)], 5, (35, 35), padding=(17,) * 4), exact=True)
    check(plain([nhwc(1, 65, 40, 3)], 5, (600, 2), padding=(300, 299, 1, 0)), exact=True)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("channels", [3, 64, 65])
def test_any_padding(mode: str, channels: int) -> None:
    x = [nhwc(2, channels, 5, 6)]
    values: dict[str, Any] = {"kernel": (3, 5), "padding": (2, 1, 3, 4), "padding_mode": mode}
    check(plain(x, 9, **values), exact=True)
    check(everything(plain(x, 9, **values, stride=(1, 2)), channels), exact=False)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("channels", [3, 64, 65])
def test_transposed(stride: int, dilation: int, channels: int) -> None:
    x = [nhwc(2, channels, 3, 4)]
    for taps in (1, 2, 3, 4):
        values: dict[str, Any] = {
            "kernel": (taps, 3),
            "stride": (stride, 2),
            "dilation": (dilation, 1),
            "padding": (taps // 2, taps // 2, 1, 0),
            "output_padding": (max(stride, dilation) - 1, 1),
            "transposed": True,
        }
        check(plain(x, 9, **values), exact=True)
        check(everything(plain(x, 9, **values), taps), exact=False)
    values = {"kernel": (2, 2), "stride": (2, 2), "transposed": True, "groups": channels}
    check(plain(x, 2 * channels, **values), exact=True)


@pytest.mark.parametrize("channels", [5, 64])
def test_one_and_three_dimensions(channels: int) -> None:
    row, block = [nhwc(2, channels, 1100)], [nhwc(2, channels, 3, 4, 5)]
    check(plain(row, 7, (5,), stride=(2,), padding=(2, 2)), exact=True)
    check(everything(plain(row, 7, (1,)), 0), exact=False)
    check(everything(plain(row, 7, (3,), transposed=True, stride=(2,)), 1), exact=False)
    check(plain(block, 7, (2, 3, 2), stride=(1, 2, 1), padding=(1, 1, 1, 1, 0, 1)), exact=True)
    check(
        everything(plain(block, 7, (3, 1, 3), stride=(2, 1, 2), padding=(1,) * 6), 2), exact=False
    )
    check(everything(plain(block, 7, (2, 2, 2), transposed=True, stride=(2, 2, 2)), 3), exact=False)


@pytest.mark.parametrize("parts", [(64, 64), (64, 16), (16, 64), (3, 62, 70), (1, 1, 1)])
def test_joined_sources_of_different_sizes(parts: tuple[int, ...]) -> None:
    factors = [2, 1, 4][: len(parts)]
    x = [nhwc(2, c, 8 // f, 4 // f) for c, f in zip(parts, factors, strict=True)]
    for seed in range(4):
        values = plain(x, 11, upsample=factors, **SQUARE)
        check(values, exact=True)
        check(everything(values, seed), exact=False)


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("parts", [(32,), (16, 8), (64, 64), (70, 26)])
def test_upsampled_sources(factor: int, parts: tuple[int, ...]) -> None:
    x = [nhwc(2, c, 3, 5) for c in parts]
    for outputs in (8, 24, 100, 200):
        values = plain(x, outputs, upsample=[factor] * len(parts), **SQUARE)
        check(values, exact=True)
        for seed in range(3):
            check(everything(values, seed), exact=False)


@pytest.mark.parametrize("ratio", [2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("grouping", ["contiguous", "interleaved"])
def test_bypass_between_any_channels(ratio: int, grouping: str) -> None:
    given: dict[str, Any] = {"bypass": grouping, "want_means": True}
    for narrow in (5, 16, 37):
        for extra in (0, 3):
            wide = narrow * ratio + extra
            check(plain([nhwc(1, wide, 3, 4)], narrow, **given), exact=False)
            check(plain([nhwc(1, narrow, 3, 4)], wide, **given), exact=False)
            strided = plain([nhwc(1, wide, 5, 4)], narrow, (1, 1), (2, 2), **given)
            check(strided, exact=False)
        parts = [nhwc(1, narrow, 3, 4), nhwc(1, narrow * ratio, 3, 4)]
        check(plain(parts, narrow, **given), exact=False)
        check(plain(parts, 2 * narrow * (ratio + 1), **given), exact=False)


@pytest.mark.parametrize("channels", [1, 7, 8, 16, 33, 97])
@pytest.mark.parametrize("seed", range(4))
def test_results_as_codes(channels: int, seed: int) -> None:
    """Codes of the numbers that the unit would write, after any bypass, residual, activation."""
    torch.manual_seed(seed)
    given = everything(plain([nhwc(2, 6, 7, 5)], channels, **SQUARE), seed)
    given["means"] = [x.mean((2, 3)) for x in given["sources"]]
    for name in SETS:
        run = native.select(name)
        y, means = run(**given)
        for scale, zero in ((0.05, 0), (0.4, 128), (3.0, 255)):
            codes, same = run(**given, y_scale=scale, y_zero=zero)
            assert codes.dtype == torch.uint8
            assert codes.stride() == y.stride()
            assert torch.equal(codes, plain_codes(y, scale, zero))
            assert torch.equal(means, same)
        wanted = reference.unit(**given, y_scale=0.05, y_zero=9)[0].int()
        found = run(**given, y_scale=0.05, y_zero=9)[0].int()
        assert ((wanted - found).abs() <= 1).all()


def test_threshold_on_the_mean_of_a_constant_map() -> None:
    """Sums in single precision miss the mean, and every sign would be the other one."""
    x = torch.randn(2, 70, 1, 1).expand(2, 70, 15, 13).contiguous(memory_format=torch.channels_last)
    values = plain([x], 9, mean_gain=torch.ones(70), threshold=torch.zeros(70))
    wanted = reference.unit(**values)[0]
    for name in SETS:
        assert torch.equal(native.select(name)(**values)[0], wanted), name
    signs = reference.unit(**values | {"mean_gain": None, "threshold": torch.full((70,), -9.0)})[0]
    assert torch.equal(wanted, signs)  # all bits are +1


def test_means_of_some_sources() -> None:
    x = [nhwc(2, channels, 6, 5) for channels in (64, 20, 7)]
    values = plain(x, 9, mean_gain=torch.randn(91), **SQUARE)
    wanted = reference.unit(**values)[0]
    means = [part.double().mean((2, 3)).float() for part in x]
    for given in ((0,), (1,), (0, 2), (0, 1, 2)):
        some = [m if i in given else torch.empty(0) for i, m in enumerate(means)]
        assert torch.equal(reference.unit(**values | {"means": some})[0], wanted)
        for name in SETS:
            found = native.select(name)(**values | {"means": some})[0]
            assert torch.equal(found, wanted), (name, given)


@pytest.mark.parametrize("ratio", [2, 3, 4, 5, 6, 8])
def test_equal_pixels_have_equal_results(ratio: int) -> None:
    x = torch.randn(1, 1, 1, 24 * ratio).expand(1, 3, 37, -1).contiguous().movedim(-1, 1)
    given: dict[str, Any] = {"bypass": "contiguous", "want_means": True}
    values = plain([x], 24, **given)
    check(values, exact=False)
    for name in SETS:
        y = native.select(name)(**values)[0]
        assert torch.equal(y, y[:, :, :1, :1].expand_as(y)), name


@pytest.mark.parametrize("stride", [(1, 3), (2, 2), (3, 3), (2, 7)])
def test_bypass_over_windows_of_any_size(stride: tuple[int, int]) -> None:
    for channels in (5, 16, 37):
        values = plain([nhwc(2, channels, 9, 15)], channels, stride, stride)
        check(values | {"bypass": "contiguous", "bypass_offset": (1, 0)}, exact=False)


def test_maps_of_one_pixel_and_no_samples() -> None:
    check(everything(plain([nhwc(3, 64, 1, 1)], 65, **SQUARE), 1), exact=False)
    check(plain([nhwc(3, 65, 1, 1)], 8, **SQUARE), exact=True)
    check(plain([nhwc(0, 65, 4, 4)], 8, **SQUARE, want_means=True), exact=True)


def test_any_strides_and_alignment() -> None:
    x = torch.randn(2, 70, 6, 5)
    for view in (
        x,
        x.transpose(2, 3),
        x[:, ::2],
        x[:, :, ::2, 1:4],
        nhwc(2, 70, 6, 5)[:, 3:20],
        nhwc(2, 70, 12, 10)[:, :, ::2, 1::2],
        nhwc(2, 1, 6, 5).expand(2, 70, 6, 5),
        nhwc(1, 70, 6, 5).expand(3, 70, 6, 5),
        torch.zeros(4 * 2 * 70 * 30 + 1, dtype=torch.uint8)[1:].view(torch.uint8),
    ):
        if view.dtype == torch.uint8:
            raw = bytearray(4 * 70 * 30 + 1)
            map = torch.frombuffer(raw, dtype=torch.float32, offset=1, count=70 * 30)
            view = map.view(1, 6, 5, 70).movedim(-1, 1).copy_(x[:1])
        check(plain([view], 9, **SQUARE), exact=True)
        check(plain([view], 9, (1, 1)), exact=True)
        residual = torch.randn(view.shape[0], 18, 6, 5)[:, ::2, : view.shape[2], : view.shape[3]]
        if residual.shape[2:] == view.shape[2:]:
            check(plain([view], 9, **SQUARE, residuals=[residual]), exact=False)


@pytest.mark.skipif(sys.platform != "linux", reason="needs memory that is not there until used")
def test_offsets_beyond_32_bits() -> None:
    far = 2**31 + 8  # elements
    reserve = 0x4000  # MAP_NORESERVE: address space alone
    memory = mmap.mmap(-1, 4 * (far + 256), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve)
    everywhere = torch.frombuffer(memory, dtype=torch.float32)
    # Samples, rows and columns as far apart as that; only their own pages are ever touched.
    for strides, shape in (
        ((far, 1, 64, 64), (2, 64, 1, 1)),
        ((0, 1, far, 64), (1, 64, 2, 1)),
        ((0, 1, 64, far), (1, 64, 1, 2)),
    ):
        x = everywhere.as_strided(shape, strides).copy_(torch.randn(shape))
        near = x.clone(memory_format=torch.channels_last)
        values = everything(plain([near], 64, **SQUARE), 5) | {"bypass": "contiguous"}
        values |= {"bypass_offset": [0, 0], "residuals": [near], "means": []}
        for name in SETS:
            wanted = native.select(name)(**values)
            got = native.select(name)(**(values | {"sources": [x], "residuals": [x]}))
            assert torch.equal(got[0], wanted[0])
            assert torch.equal(got[1], wanted[1])


def test_not_a_number_and_infinity() -> None:
    x = nhwc(1, 66, 4, 4)
    x[0, ::3] = torch.nan
    x[0, 1::5] = torch.inf
    x[0, 2::7] = -torch.inf
    check(plain([x], 9, **SQUARE), exact=True)
    check(plain([x], 9, **SQUARE, flip=torch.rand(66) < 0.5), exact=True)
    y, _ = native.unit(**plain([x], 9, (1, 1), bypass="contiguous"))
    assert y.isnan().any()


@pytest.mark.parametrize("channels", [1, 4, 8, 16, 24, 32, 40, 63, 64, 65, 130])
def test_values_on_their_threshold(channels: int) -> None:
    """They are +1, zeros of both signs and what is no number too, in every way of packing."""
    x = torch.randint(-1, 2, (1, 6, 5, channels)).float().movedim(-1, 1)
    x[0, :, 0, :2] = -0.0
    x[0, :, 1, :2] = torch.nan
    threshold = torch.randint(-1, 2, (channels,)).float()
    for flip in (None, torch.rand(channels) < 0.5):
        check(plain([x], 9, **SQUARE, threshold=threshold, flip=flip), exact=True)


@pytest.mark.parametrize("outputs", [1, 8, 9, 33, 97])
@pytest.mark.parametrize(
    ("channels", "taps"), [(64, 6), (70, 6), (8, 9), (256, 3), (1100, 1), (2688, 5)]
)
def test_counts_at_their_limits(channels: int, taps: int, outputs: int) -> None:
    """All bits differ: no counter of 8 or 16 bits may overflow."""
    x = [nhwc(1, channels, 6, 7).abs()]
    kernel = (taps, taps)
    values = plain(x, outputs, kernel, padding=(taps // 2,) * 4, threshold=torch.zeros(channels))
    weight = pack_weight(
        -torch.ones(outputs, channels, *kernel),
        stride=(1, 1),
        dilation=(1, 1),
        groups=1,
        transposed=False,
    )
    check(values | {"weight": weight}, exact=True)


@pytest.mark.parametrize("width", [511, 512, 513, 700, 1300])
def test_means_of_long_rows(width: int) -> None:
    """Threads add up parts of a row."""
    x = [nhwc(1, 20, 2, width), nhwc(1, 3, 2, width)]
    values = plain(x, 9, mean_gain=torch.randn(23))
    wanted = reference.unit(**values)[0]
    for name in SETS:
        assert torch.equal(native.select(name)(**values)[0], wanted), name


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    values = everything(plain([nhwc(2, 64, 40, 41)], 96, **SQUARE), 3)
    values |= {"means": [], "mean_gain": torch.randn(64), "exponent": torch.tensor(0.3)}
    before = torch.get_num_threads()
    try:
        for name in SETS:
            results = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(native.select(name)(**values))
            for other in results[1:]:
                assert torch.equal(other[0], results[0][0])
                assert torch.equal(other[1], results[0][1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("transposed", [False, True])
def test_any_stage_may_have_fewer_items_than_threads(transposed: bool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for height, width in ((1, 1), (1, 2), (2, 3), (7, 5), (1, 700)):
            values: dict[str, Any] = {"stride": (2, 3), "transposed": transposed}
            x = [nhwc(1, 40, height, width)]
            check(plain(x, 9, **SQUARE, **values), exact=True)
            check(everything(plain(x, 9, **SQUARE, **values), width), exact=False)
    finally:
        torch.set_num_threads(before)


def test_little_work_is_left_to_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(openmp, "threads", lambda: asked.append(1) or 2)
    values = plain([nhwc(1, 64, 16, 16)], 64, **SQUARE)
    work = 2 * 2 * 64 * 256 + 256 * 64 * 64 * 9 // 512
    for limit, expected in ((work + 1, 0), (work, 1)):
        monkeypatch.setattr(native, "SERIAL_WORK", limit)
        native.select(SETS[0])(**values)
        assert len(asked) == expected


def test_several_python_threads_at_once() -> None:
    cases = [everything(plain([nhwc(1, c, 20, 20)], 64, **SQUARE), c) for c in (16, 64, 65, 130)]
    expected = [native.unit(**values)[0] for values in cases]
    wrong: list[int] = []

    def work(number: int) -> None:
        torch.set_num_threads(2)  # of this thread's own calls
        for turn in range(10):
            which = (number + turn) % len(cases)
            if not torch.equal(native.unit(**cases[which])[0], expected[which]):
                wrong.append(which)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


FORK = """
import os, sys, torch
sys.path[:0] = PATHS
from binarize.kernels import native, openmp, pack_weight
torch.set_num_threads(2)
x = torch.randn(1, 64, 32, 32).contiguous(memory_format=torch.channels_last)
weight = pack_weight(torch.randn(64, 64, 3, 3), stride=(1, 1), dilation=(1, 1))
rest = [torch.ones(64), torch.zeros(64), None, torch.zeros(64), None, None, (3, 3), (1, 1),
        (1, 1, 1, 1), (1, 1), 1, "zeros", False, (0, 0), "none", (0, 0), [], None, None, None,
        False]
run = lambda: native.unit([x], [1], [], weight, *rest)[0]
before = run()
child = os.fork()
if child == 0:
    after = run()
    torch.set_num_threads(1)  # torch itself would wait for the threads that the fork lost
    os._exit(0 if openmp.threads() == 1 and torch.equal(after, before) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_forked_child_goes_on_with_one_thread() -> None:
    script = FORK.replace("PATHS", repr(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", script], timeout=100, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_environment_chooses_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*SETS, "reference"]:
        monkeypatch.setenv(native.ENVIRONMENT, name)
        assert native.status().active == name
    monkeypatch.setenv(native.ENVIRONMENT, "mmx")
    with pytest.raises(BinarizeError) as caught:
        native.status()
    choices = ", ".join([*SETS, "reference"])
    assert str(caught.value) == (
        f"BINARIZE_KERNELS='mmx': this installation on this machine has {choices}; "
        "set one of them, or unset it to use the first"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_threads_are_those_of_torch() -> None:
    address, library = openmp.runner(native._load()[0])
    assert address
    assert "omp" in library


@pytest.mark.skipif(not SETS, reason="no C library")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gain": torch.ones(8, dtype=torch.float64)}, "gain='8 x torch.float64': must be 8"),
        ({"threshold": torch.ones(3)}, "threshold='3 x torch.float32': must be 6"),
        ({"weight": torch.zeros(3, dtype=torch.uint8)}, "weight='3 x torch.uint8': this conv"),
        ({"sources": [torch.zeros(1, 6, 4, 4).double()]}, "sources=torch.float64: the kernels"),
        ({"upsample": [0]}, "upsample=(0,): must hold one factor of at least 1 per source"),
        ({"groups": 4}, "groups=4: must divide 6 and 8 channels"),
        ({"stride": (1, 0)}, "stride=(1, 0): must hold 2 numbers, at least 1 each"),
        ({"padding_mode": "mirror"}, "padding_mode='mirror': must be one of zeros, reflect"),
        ({"bypass": "all"}, "bypass='all': must be one of none, contiguous, interleaved"),
        ({"kernel": (9, 9)}, "sources=((1, 6, 4, 4),): must give at least one output"),
        ({"residuals": [torch.zeros(1, 8, 9, 4)]}, "residuals=(1, 8, 9, 4): must have shape"),
        ({"means": [torch.zeros(1, 6)] * 2}, "means=2: must be empty or have one per source"),
        (
            {"padding_mode": "reflect", "padding": (4, 0, 0, 0)},
            "padding=(4, 0, 0, 0): must be smaller than the feature map, (4, 4), to reflect it",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    values = plain([nhwc(1, 6, 4, 4)], 8, **SQUARE)
    with pytest.raises(BinarizeError) as caught:
        native.select(SETS[0])(**(values | change))
    assert str(caught.value).startswith(message)
