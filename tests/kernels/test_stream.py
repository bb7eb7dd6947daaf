"""Units on the frames of a video: their results equal those of the unit on the frame alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from binarize.kernels import native, pack_weight
from binarize.kernels.stream import UnitStream

# Channels, outputs, kernel, size, and what differs from a 3x3 convolution with padding 1.
UNITS: dict[str, tuple[int, int, tuple[int, int], dict[str, Any]]] = {
    "two registers of lanes": (64, 64, (9, 11), {}),
    "three registers of lanes": (24, 90, (5, 7), {}),
    "several blocks of lanes": (32, 200, (5, 6), {}),
    "half a register of lanes": (64, 12, (9, 7), {}),
    "half a register, sum of many": (512, 16, (4, 3), {}),
    "a register of lanes": (128, 32, (6, 7), {}),
    "few outputs": (40, 5, (6, 7), {}),
    "odd channels": (30, 40, (7, 9), {}),
    "stride 2": (64, 128, (9, 12), {"stride": [2, 2]}),
    "1x1": (64, 48, (6, 7), {"kernel": [1, 1], "padding": [0] * 4}),
    "dilated": (64, 64, (9, 8), {"dilation": [2, 2], "padding": [2] * 4}),
    "grouped": (96, 96, (5, 6), {"groups": 3}),
    "grouped, odd channels": (15, 36, (6, 5), {"groups": 3}),
    "depthwise": (70, 70, (8, 9), {"groups": 70}),
    "folded": (3, 64, (9, 10), {"kernel": [7, 7], "stride": [2, 2], "padding": [3] * 4}),
    "reflected": (17, 80, (6, 7), {"padding_mode": "reflect"}),
    "circular": (32, 40, (5, 7), {"padding_mode": "circular"}),
    "transposed": (48, 32, (5, 4), {"transposed": True, "stride": [2, 2], "kernel": [2, 2],
                                    "padding": [0] * 4}),
    "transposed, phases differ": (20, 96, (4, 5), {"transposed": True, "stride": [2, 2],
                                                   "output_padding": [1, 0]}),
    "one pixel": (64, 64, (1, 1), {}),
}  # fmt: skip
SETS = native.status().usable


def unit(name: str) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Shape of the frames and the other arguments of a unit with random numbers."""
    channels, outputs, size, changes = UNITS[name]
    given: dict[str, Any] = {
        "kernel": [3, 3],
        "stride": [1, 1],
        "padding": [1] * 4,
        "dilation": [1, 1],
        "groups": 1,
        "padding_mode": "zeros",
        "transposed": False,
        "output_padding": [0, 0],
    } | changes
    groups, transposed = given["groups"], given["transposed"]
    shape = (channels, outputs // groups) if transposed else (outputs, channels // groups)
    weight = pack_weight(
        torch.randn(*shape, *given["kernel"]),
        **{key: given[key] for key in ("stride", "dilation", "groups", "transposed")},
    )
    return (2, channels, *size), given | {
        "upsample": [1],
        "means": [],
        "weight": weight,
        "gain": torch.randn(outputs),
        "offset": torch.randn(outputs),
        "mean_gain": torch.randn(channels),
        "threshold": torch.randn(channels) / 4,
        "flip": torch.rand(channels) < 0.3,
        "exponent": torch.randn(1),
        "bypass": "none",
        "bypass_offset": [0, 0],
        "residuals": [],
        "act_shift": torch.randn(outputs),
        "act_slope": torch.rand(outputs),
        "act_out_shift": None,
        "want_means": True,
    }


def frames(shape: tuple[int, ...]) -> Iterator[Tensor]:
    """A scene change, nothing new, few changes, many, all of one sample, few."""
    x = torch.randn(shape)
    share: Any
    for share in (1, 0, 0.003, 0.03, 0.4, "sample", 0.02):
        changed = torch.zeros(shape, dtype=torch.bool)
        if share == "sample":
            changed[1] = True
        else:
            changed = torch.rand(shape) < share
        x = torch.where(changed, torch.randn(shape), x)
        yield x.contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not SETS, reason="no kernels were built")
@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", UNITS)
def test_every_frame_has_the_result_of_the_frame_alone(name: str, instructions: str) -> None:
    torch.manual_seed(0)
    shape, given = unit(name)
    run, stream = native.select(instructions), UnitStream()
    for number, x in enumerate(frames(shape)):
        before = stream.counters()
        y, means = run([x], **given, stream=stream)
        wanted, wanted_means = run([x], **given)
        assert torch.equal(y, wanted), number
        assert torch.equal(means, wanted_means), number
        did = {key: value - before[key] for key, value in stream.counters().items()}
        if number == 0:
            assert did["recounted"] == did["windows"] > 0
            assert did["work_done"] == did["work"]
        if number == 1:
            assert did["corrected"] == did["recounted"] == did["changed_bits"] == 0
            assert did["work_done"] == 0
    assert stream.bytes > 0


@pytest.mark.skipif("avx2" not in SETS, reason="corrections need table look-ups")
def test_few_changes_are_corrected_and_many_are_recounted() -> None:
    torch.manual_seed(0)
    shape, given = unit("two registers of lanes")
    given |= {"mean_gain": None, "exponent": None}
    run, stream = native.select("avx2"), UnitStream()
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    run([x], **given, stream=stream)
    x = x.clone(memory_format=torch.preserve_format)
    level = given["threshold"][5]
    x[0, 5, 4, 4] = level + 1 if x[0, 5, 4, 4] < level else level - 1  # one bit
    before = stream.counters()
    run([x], **given, stream=stream)
    did = {key: value - before[key] for key, value in stream.counters().items()}
    assert did["changed_bits"] == 1
    assert did["corrected"] == did["work_done"] == 9
    assert did["recounted"] == 0
    x[1] = 2 * given["threshold"].view(-1, 1, 1) - x[1]  # nearly all bits of the second sample
    before = stream.counters()
    run([x], **given, stream=stream)
    did = {key: value - before[key] for key, value in stream.counters().items()}
    assert did["recounted"] == 9 * 11
    assert did["corrected"] == 0


@pytest.mark.skipif(not SETS, reason="no kernels were built")
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_matter(threads: int) -> None:
    torch.manual_seed(0)
    shape, given = unit("two registers of lanes")
    shape = (2, shape[1], 40, 45)  # enough work for threads
    streams = UnitStream(), UnitStream()
    before = torch.get_num_threads()
    try:
        for x in frames(shape):
            torch.set_num_threads(threads)
            y, _ = native.stream_unit(streams[0], *ordered(x, given))
            torch.set_num_threads(1)
            wanted, _ = native.stream_unit(streams[1], *ordered(x, given))
            assert torch.equal(y, wanted)
    finally:
        torch.set_num_threads(before)
    assert streams[0].counters() == streams[1].counters()


def ordered(x: Tensor, given: dict[str, Any]) -> list[Any]:
    """The arguments in the operator's order."""
    schema = torch.ops.binarize.unit.default._schema
    known = {**given, "sources": [x]}
    return [known.get(a.name, a.default_value) for a in schema.arguments]


@pytest.mark.skipif(not SETS, reason="no kernels were built")
@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("name", ["two registers of lanes", "odd channels", "depthwise", "grouped"])
def test_a_tolerance_bounds_the_error_of_sums(name: str, instructions: str) -> None:
    torch.manual_seed(0)
    shape, given = unit(name)
    plain = dict.fromkeys(("mean_gain", "exponent", "act_shift", "act_slope"))
    outputs = len(given["gain"])
    given |= plain | {"gain": torch.ones(outputs), "offset": torch.zeros(outputs)}
    tolerance = 0.1
    run, stream = native.select(instructions), UnitStream(tolerance)
    signs = 9 * shape[1]  # of all groups, which some kernels take over together
    errors = []
    x = torch.randn(shape)
    for _ in range(8):  # little at a time: what is ignored does not add up
        x = torch.where(torch.rand(shape) < 0.04, torch.randn(shape), x)
        x = x.contiguous(memory_format=torch.channels_last)
        y, _ = run([x], **given, stream=stream)
        errors.append((y - run([x], **given)[0]).abs().max().item())
    assert errors[0] == 0
    assert 0 < max(errors) <= 2 * tolerance * signs
    assert stream.counters()["work_done"] < stream.counters()["work"]


@pytest.mark.skipif(not SETS, reason="no kernels were built")
def test_another_weight_begins_anew() -> None:
    torch.manual_seed(0)
    shape, given = unit("two registers of lanes")
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    stream = UnitStream()
    native.stream_unit(stream, *ordered(x, given))
    given["weight"].copy_(unit("two registers of lanes")[1]["weight"])
    y, _ = native.stream_unit(stream, *ordered(x, given))
    assert torch.equal(y, native.unit(*ordered(x, given))[0])


def test_plain_torch_keeps_nothing() -> None:
    shape, given = unit("few outputs")
    x, stream = torch.randn(shape), UnitStream()
    run = native.select("reference")
    assert torch.equal(run([x], **given, stream=stream)[0], run([x], **given)[0])
    assert stream.bytes == 0


@pytest.mark.skipif("avx2" not in SETS, reason="only look-ups count in 16 bits")
def test_sums_beyond_16_bits_are_not_kept() -> None:
    channels = 65536 + 8
    given = unit("few outputs")[1] | {
        "kernel": [1, 1],
        "padding": [0] * 4,
        "weight": pack_weight(torch.randn(16, channels, 1, 1), stride=[1, 1], dilation=[1, 1]),
        "gain": torch.ones(16),
        "offset": torch.zeros(16),
        "mean_gain": None,
        "threshold": torch.zeros(channels),
        "flip": None,
        "act_shift": None,
        "act_slope": None,
    }
    x = torch.randn(1, channels, 2, 3).contiguous(memory_format=torch.channels_last)
    run, stream = native.select("avx2"), UnitStream()
    assert torch.equal(run([x], **given, stream=stream)[0], run([x], **given)[0])
    assert stream.bytes == 0
