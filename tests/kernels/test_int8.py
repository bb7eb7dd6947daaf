"""``binarize::int8_layer`` against sums of integers, and codes on every instruction set."""

from __future__ import annotations

import ctypes
import gc
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.errors import BinarizeError
from binarize.kernels import int8, int8_native, native
from binarize.kernels.int8 import int8_layer, quantized

SETS = native.status().usable


def use(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(native.ENVIRONMENT, name)
    native.int8_kernels.cache_clear()
    int8._has_onednn.cache_clear()


@pytest.fixture(params=["native", "reference"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways to compute a layer."""
    use(monkeypatch, SETS[0] if request.param == "native" else "reference")
    yield request.param
    native.int8_kernels.cache_clear()


# Codes


def coded(name: str, x: Tensor, scale: float, zero: int) -> Tensor:
    """Codes by one instruction set, with a byte on either side that must not change."""
    library = native._load()[0]
    made = torch.full((x.numel() + 2,), 77, dtype=torch.uint8)
    inverse = float(1 / torch.tensor(scale, dtype=torch.float32))
    where = x.data_ptr(), x.numel()
    assert (
        library.binarize_codes(native.SETS[name], *where, inverse, zero, made.data_ptr() + 1) == 0
    )
    assert made[0] == made[-1] == 77
    return made[1:-1]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("scale", "zero"), [(0.1, 7), (1 / 3, 0), (1.7e-4, 255), (0.02, 128)])
def test_codes_round_as_torch_does(name: str, scale: float, zero: int) -> None:
    step = torch.tensor(scale)
    for length in range(71):
        x = torch.randn(length) * scale * 150
        wanted = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)
        codes = coded(name, x, scale, zero)
        assert torch.equal((codes.float() - zero) * step, wanted)
        # Where it does not matter how a quotient is rounded, it is the closed form.
        place = x.double().numpy() / float(step)
        clear = np.abs(place - np.floor(place) - 0.5) > 1e-4
        closed = np.clip(np.rint(place) + zero, 0, 255)
        assert np.array_equal(codes.numpy()[clear], closed[clear])


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("zero", [0, 1, 128, 254, 255])
def test_exact_halves_and_numbers_without_end(name: str, zero: int) -> None:
    halves = torch.arange(-300, 300) + 0.5
    wanted = np.clip(np.rint(halves.double().numpy()) + zero, 0, 255)
    assert np.array_equal(coded(name, halves, 1.0, zero).numpy(), wanted)
    far = torch.tensor([torch.inf, -torch.inf, 3e38, -3e38, 2.0**31, -(2.0**31), 2.0**33, -0.0])
    for scale in (1.0, 1e-3):
        found = coded(name, far.repeat(5), scale, zero).view(5, -1)
        assert found.tolist() == [[255, 0, 255, 0, 255, 0, 255, zero]] * 5
    nothing = torch.full((19,), torch.nan)
    same = torch.fake_quantize_per_tensor_affine(nothing, 1.0, zero, 0, 255)
    assert torch.equal(coded(name, nothing, 1.0, zero) - float(zero), same)
    assert (quantized(nothing.double(), 1.0, zero) == coded(name, nothing, 1.0, zero)).all()


@pytest.mark.parametrize("name", SETS)
def test_codes_at_odd_addresses(name: str) -> None:
    raw = torch.randn(80)
    for start in range(8):
        x = raw[start : start + 37]
        assert torch.equal(coded(name, x, 0.05, 99), coded(name, x.clone(), 0.05, 99))


def test_codes_that_there_cannot_be() -> None:
    library, x = native._load()[0], torch.zeros(3)
    for count, zero in ((-1, 0), (3, -1), (3, 256)):
        assert library.binarize_codes(0, x.data_ptr(), count, 1.0, zero, x.data_ptr()) == 1
    assert library.binarize_codes(99, x.data_ptr(), 3, 1.0, 0, x.data_ptr()) == 2


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_codes_of_any_strides(way: str, kind: torch.dtype) -> None:
    x = torch.randn(2, 5, 4, 3).to(kind)
    wanted = np.clip(np.rint(x.float().numpy() * np.float32(32)) + 100, 0, 255)
    last = x.contiguous(memory_format=torch.channels_last)
    for view in (x, last, torch.stack([x, -x], -1)[..., 0], x[:, ::2], x[..., :0]):
        found = quantized(view, 1 / 32, 100)
        assert found.dtype == torch.uint8
        assert found.shape == view.shape
    assert np.array_equal(quantized(last, 1 / 32, 100).numpy(), wanted)
    assert np.array_equal(quantized(x[:, ::2], 1 / 32, 100).numpy(), wanted[:, ::2])
    codes = quantized(x, 1 / 32, 100)
    assert quantized(codes, 99.0, 3) is codes


# Layers


def call(x: Tensor, weight: Tensor, **given: Any) -> dict[str, Any]:
    """Arguments of the op."""
    dims = weight.dim() - 2
    groups = given.get("groups", 1)
    out = weight.shape[1] * groups if given.get("transposed") else weight.shape[0]
    values = {
        "x": x,
        "x_scale": 1.0,
        "x_zero": 0,
        "weight": weight,
        "gain": torch.ones(out),
        "bias": None,
        "stride": (1,) * dims,
        "padding": (0, 0) * dims,
        "dilation": (1,) * dims,
        "groups": 1,
        "transposed": False,
        "output_padding": (0,) * dims,
        "activation": "none",
        "limits": [],
        "y_scale": None,
        "y_zero": 0,
    }
    assert given.keys() <= values.keys()
    return values | given


def taken(start: int, count: int, step: int) -> slice:
    return slice(start, start + (count - 1) * step + 1, step)


def sums(values: dict[str, Any]) -> np.ndarray:
    """The sums of integers, one product after the other."""
    codes, w = values["x"].numpy(), values["weight"].numpy().astype(np.int64)
    q = codes.astype(np.int64) - values["x_zero"]
    dims, groups, transposed = w.ndim - 2, values["groups"], values["transposed"]
    stride, dilation, pads = (values[k] for k in ("stride", "dilation", "padding"))
    reach = [dilation[d] * (w.shape[2 + d] - 1) + 1 for d in range(dims)]
    inner = q.shape[1] // groups
    outer = w.shape[1] if transposed else w.shape[0] // groups
    if transposed:
        extra = values["output_padding"]
        whole = [(q.shape[2 + d] - 1) * stride[d] + reach[d] + extra[d] for d in range(dims)]
        y = np.zeros((q.shape[0], outer * groups, *whole), np.int64)
    else:
        q = np.pad(q, [(0, 0), (0, 0), *[tuple(pads[2 * d : 2 * d + 2]) for d in range(dims)]])
        size = [(q.shape[2 + d] - reach[d]) // stride[d] + 1 for d in range(dims)]
        y = np.zeros((q.shape[0], outer * groups, *size), np.int64)
    for g, tap in itertools.product(range(groups), np.ndindex(*w.shape[2:])):
        ins, outs = slice(g * inner, (g + 1) * inner), slice(g * outer, (g + 1) * outer)
        start = [dilation[d] * tap[d] for d in range(dims)]
        if transposed:
            there = [taken(*of) for of in zip(start, q.shape[2:], stride, strict=True)]
            part = np.einsum("nc...,co->no...", q[:, ins], w[(ins, slice(None), *tap)])
            y[(slice(None), outs, *there)] += part
        else:
            there = [taken(*of) for of in zip(start, size, stride, strict=True)]
            part = q[(slice(None), ins, *there)]
            y[:, outs] += np.einsum("nc...,oc->no...", part, w[(outs, slice(None), *tap)])
    if transposed:
        cut = [slice(pads[2 * d], y.shape[2 + d] - pads[2 * d + 1]) for d in range(dims)]
        y = y[(slice(None), slice(None), *cut)]
    return y


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8))


def weights(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(-63, 64, shape).astype(np.int8))


CASES: dict[str, dict[str, Any]] = {
    "1x1": call(drawn(2, 5, 4, 3), weights(7, 5, 1, 1)),
    "one channel": call(drawn(1, 1, 5, 4), weights(1, 1, 3, 3), padding=(1, 1, 1, 1)),
    "3x3": call(drawn(2, 33, 6, 5), weights(17, 33, 3, 3), padding=(1, 1, 1, 1)),
    "stride": call(drawn(1, 16, 9, 8), weights(8, 16, 3, 2), stride=(2, 3), padding=(2, 2, 1, 1)),
    "one side": call(drawn(1, 4, 6, 6), weights(5, 4, 4, 3), padding=(1, 2, 0, 1), stride=(2, 1)),
    "dilation": call(drawn(1, 3, 9, 9), weights(4, 3, 3, 3), dilation=(2, 3), padding=(2, 2, 3, 3)),
    "groups": call(drawn(2, 6, 5, 5), weights(9, 2, 3, 3), groups=3, padding=(1, 1, 0, 0)),
    "depthwise": call(drawn(2, 19, 6, 5), weights(19, 1, 3, 3), groups=19, padding=(1, 1, 1, 1)),
    "depthwise stride": call(
        drawn(1, 64, 7, 7), weights(64, 1, 5, 5), groups=64, padding=(2, 2, 2, 2), stride=(2, 2)
    ),
    "two each": call(drawn(1, 5, 5, 5), weights(10, 1, 3, 3), groups=5),
    "one pixel": call(drawn(1, 3, 3, 3), weights(4, 3, 3, 3)),
    "one row": call(drawn(1, 1, 1, 5), weights(1, 1, 1, 2)),
    "no samples": call(drawn(0, 3, 7, 7), weights(2, 3, 3, 3)),
    "one": call(drawn(2, 8, 21), weights(5, 8, 4), stride=(2,), dilation=(3,), padding=(2, 1)),
    "rows": call(drawn(1, 48, 13), weights(10, 48, 1)),
    "three": call(
        drawn(1, 4, 3, 5, 4), weights(6, 2, 2, 3, 1), groups=2, padding=(1, 0, 1, 1, 0, 0)
    ),
    "transposed": call(
        drawn(2, 6, 4, 3),
        weights(6, 4, 3, 2),
        transposed=True,
        groups=2,
        stride=(2, 3),
        padding=(1, 1, 0, 0),
        output_padding=(1, 2),
        dilation=(1, 2),
    ),
    "transposed one": call(drawn(1, 5, 6), weights(5, 3, 3), transposed=True, stride=(2,)),
    "transposed three": call(drawn(1, 3, 2, 3, 2), weights(3, 4, 2, 2, 2), transposed=True),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("zero", [0, 119, 255])
def test_sums_of_integers(way: str, name: str, zero: int) -> None:
    values = CASES[name] | {"x_zero": zero}
    wanted = sums(values)
    found = int8_layer(*values.values())
    assert found.dtype == torch.float32
    assert np.array_equal(found.double().numpy(), wanted)
    # The same, of numbers that these are the codes of.
    x = (values["x"].float() - zero) / 4
    for kind in (torch.float32, torch.float64, torch.float16):
        given = values | {"x": x.to(kind), "x_scale": 0.25}
        found = int8_layer(*given.values())
        assert found.dtype == kind
        assert torch.equal(found, torch.from_numpy(wanted / 4).float().to(kind))


@pytest.mark.parametrize("name", ["3x3", "depthwise", "one", "transposed", "no samples"])
@pytest.mark.parametrize(
    ("activation", "limits"),
    [("none", []), ("relu", []), ("hardtanh", [-0.5, 6.0]), ("hardswish", []), ("swish", [])],
)
def test_scales_constants_and_activations(
    way: str, name: str, activation: str, limits: list[float]
) -> None:
    values = CASES[name] | {"x_zero": 100, "activation": activation, "limits": limits}
    torch.manual_seed(0)
    out = values["gain"].numel()
    gain, bias = torch.randn(out) / 300, torch.randn(out)
    values |= {"gain": gain, "bias": bias, "x_scale": 0.03}
    shape = (1, -1, *(1,) * (values["weight"].dim() - 2))
    y = torch.from_numpy(sums(values)) * 0.03 * gain.double().view(shape)
    y = y + bias.double().view(shape)
    wanted = {
        "none": lambda y: y,
        "relu": F.relu,
        "hardtanh": lambda y: y.clamp(-0.5, 6),
        "hardswish": lambda y: y * (y + 3).clamp(0, 6) / 6,
        "swish": lambda y: y * torch.sigmoid(y),
    }[activation](y)
    found = int8_layer(*values.values())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-4)
    # As codes: the same number but where rounding is a matter of the last bit.
    for scale, zero in ((1 / 32, 0), (0.07, 31), (0.001, 128)):
        codes = int8_layer(*(values | {"y_scale": scale, "y_zero": zero}).values())
        assert codes.dtype == torch.uint8
        exact = wanted.numpy() / scale
        clear = np.abs(exact - np.floor(exact) - 0.5) > 3e-4 / scale
        closed = np.clip(np.rint(exact) + zero, 0, 255)
        assert np.array_equal(codes.numpy()[clear], closed[clear])
        assert (np.abs(codes.numpy() - closed) <= 1).all()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("taps", [1, 3])
def test_the_largest_products_do_not_saturate(way: str, sign: int, taps: int) -> None:
    for channels, groups in ((512, 1), (64, 64)):
        x = torch.full((1, channels, 5, 6), 255, dtype=torch.uint8)
        weight = torch.full((channels, channels // groups, taps, taps), 63 * sign)
        values = call(x, weight.to(torch.int8), groups=groups, padding=(taps // 2,) * 4)
        y = int8_layer(*values.values())
        assert y[0, 0, 2, 2] == 255 * 63 * sign * taps**2 * channels // groups
        assert torch.equal(y, y[:, :1].expand_as(y))
        assert np.array_equal(y.double().numpy(), sums(values))
        low = torch.zeros_like(x)
        values |= {"x": low, "x_zero": 255}
        assert np.array_equal(int8_layer(*values.values()).double().numpy(), sums(values))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("y_scale", [None, 0.5])
def test_the_fake_kernel_promises_what_comes(way: str, name: str, y_scale: float | None) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    codes = CASES[name]["x"]
    inputs = [codes, codes.float(), codes.half()]
    if codes.dim() == 4:
        inputs += [codes.float().contiguous(memory_format=torch.channels_last)]
        inputs += [codes.float().transpose(2, 3).contiguous().transpose(2, 3)]
    for x in inputs:
        values = CASES[name] | {"x": x, "y_scale": y_scale}
        real = int8_layer(*values.values())
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            given = [mode.from_tensor(v) if isinstance(v, Tensor) else v for v in values.values()]
            fake = int8_layer(*given)
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
        if real.numel():
            assert fake.stride() == real.stride()


@pytest.mark.parametrize("name", ["3x3", "one", "transposed three"])
def test_the_operator_keeps_the_rules_of_torch(name: str) -> None:
    for more in ({}, {"y_scale": 3.0, "y_zero": 9, "activation": "relu"}):
        values = CASES[name] | {"x": CASES[name]["x"].float(), "bias": None} | more
        torch.library.opcheck(
            int8_layer, tuple(values.values()), test_utils=("test_schema", "test_faketensor")
        )


# Depthwise convolutions on every instruction set


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("channels", [1, 7, 8, 24, 33, 64, 97])
@pytest.mark.parametrize(
    ("size", "kernel", "how"),
    [
        ((9, 21), (3, 3), {"padding": (1, 1, 1, 1)}),
        ((8, 8), (5, 3), {"padding": (2, 2, 0, 1), "stride": (2, 2)}),
        ((7, 30), (2, 1), {"padding": (3, 0, 0, 4), "stride": (3, 1)}),
        ((6, 5), (3, 3), {"padding": (9, 9, 12, 12), "dilation": (9, 12)}),
        # So many rows are kept that 97 channels are taken in two blocks.
        ((40, 40), (3, 3), {"padding": (12, 12, 12, 12), "dilation": (12, 12)}),
        ((1, 1), (3, 3), {"padding": (1, 1, 1, 1), "stride": (2, 5)}),
        ((13, 4), (1, 1), {"stride": (4, 3)}),
        ((19,), (4,), {"padding": (3, 1), "dilation": (2,)}),
    ],
)
def test_depthwise_is_exact(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    channels: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    how: dict[str, Any],
) -> None:
    """Sums of integers, then one product and one sum, as in plain torch; on any threads."""
    monkeypatch.setattr(int8_native, "_SERIAL_WORK", 0)
    use(monkeypatch, name)
    assert native.int8_kernels().takes(weights(channels, 1, *kernel), channels)  # type: ignore[union-attr]
    gain, bias = torch.randn(channels) / 300, torch.randn(channels)
    codes = drawn(2, channels, *size)
    for x in (codes, codes.movedim(1, -1).contiguous().movedim(-1, 1), torch.randn(codes.shape)):
        for more in (
            {"bias": None},
            {"activation": "hardtanh", "limits": [-0.5, 6.0]},
            {"activation": "hardswish"},
            {"y_scale": 0.03, "y_zero": 5},
            {"y_scale": 0.03, "activation": "relu"},
            {"y_scale": 0.2, "y_zero": 255, "activation": "swish"},
        ):
            values = call(x, weights(channels, 1, *kernel), groups=channels, **how)
            values |= {"gain": gain, "bias": bias, "x_scale": 0.02, "x_zero": 77} | more
            before = x.clone()
            found, wanted = int8_layer(*values.values()), int8.reference(*values.values())
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)
            assert torch.equal(x, before)
    native.int8_kernels.cache_clear()


def test_depthwise_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_native, "_SERIAL_WORK", 0)
    values = call(drawn(2, 70, 31, 9), weights(70, 1, 5, 3), groups=70, stride=(2, 1))
    wanted = torch.from_numpy(sums(values)).float()
    for count in (1, 2, 3, 9):
        monkeypatch.setattr(int8_native.openmp, "threads", lambda count=count: count)
        assert torch.equal(int8_layer(*values.values()), wanted)


@pytest.mark.parametrize(
    ("shape", "groups"),
    [((8, 1, 33, 1), 8), ((8, 1, 23, 23), 8), ((8, 2, 3, 3), 4), ((6, 1, 3, 3), 3)],
)
def test_what_the_depthwise_kernel_does_not_take(shape: tuple[int, ...], groups: int) -> None:
    weight = torch.full(shape, 63, dtype=torch.int8)
    kernels = native.int8_kernels()
    assert kernels is not None
    assert not kernels.takes(weight, groups)
    x = torch.full((1, shape[1] * groups, 34, 25), 255, dtype=torch.uint8)
    values = call(x, weight, groups=groups)
    assert np.array_equal(int8_layer(*values.values()).double().numpy(), sums(values))


def test_geometries_that_the_depthwise_kernel_refuses() -> None:
    library, good = native._load()[0], int8_native.CDepthwise()
    for name, _ in good._fields_:
        field = getattr(good, name)
        if hasattr(field, "__len__"):
            field[:] = [1] * len(field)
    good.samples = good.channels = 1
    address = ctypes.addressof(good)
    assert library.binarize_int8_depthwise_scratch(address, 1) > 0
    assert library.binarize_int8_depthwise_scratch(address, 0) == -1
    assert library.binarize_int8_depthwise_scratch(None, 1) == -1
    for name, value in (
        *(("samples", -1), ("channels", 0), ("in_zero", 256), ("out_zero", -1)),
        *((n, (1, 0)) for n in ("in_size", "out_size", "kernel", "stride", "dilation")),
        *(("kernel", (33, 1)), ("kernel", (1, 514)), ("kernel", (32, 17))),
    ):
        bad = int8_native.CDepthwise.from_buffer_copy(good)
        setattr(bad, name, int8_native._Two(*value) if isinstance(value, tuple) else value)
        address = ctypes.addressof(bad)
        assert library.binarize_int8_depthwise_scratch(address, 1) == -1
        assert library.binarize_int8_depthwise(0, address, None, 1, None) == 1
    assert library.binarize_int8_depthwise(99, ctypes.addressof(good), None, 1, None) == 2


# Prepared weights


@pytest.mark.parametrize("inference", [False, True])
def test_a_weight_that_changes(inference: bool) -> None:
    with torch.inference_mode(inference):
        weight = weights(8, 16, 3, 3).clone()
        values = call(drawn(1, 16, 5, 5), weight)
        assert weight.is_inference() == inference
        for _ in range(2):
            assert np.array_equal(int8_layer(*values.values()).numpy(), sums(values))
        weight.neg_()
        assert np.array_equal(int8_layer(*values.values()).numpy(), sums(values))


def test_one_weight_in_several_uses() -> None:
    weight, x = weights(8, 16, 3, 3), drawn(1, 16, 6, 5)
    uses = [
        call(x, weight, x_scale=scale, x_zero=zero, stride=stride, padding=padding)
        for scale in (1.0, 0.5)
        for zero in (0, 50)
        for stride, padding in (((1, 1), (1, 1, 1, 1)), ((2, 1), (0, 0, 0, 0)))
    ]
    for values in uses + uses[::-1]:
        found = int8_layer(*values.values()).double().numpy()
        assert np.array_equal(found, sums(values) * values["x_scale"])


def test_prepared_weights_live_as_long_as_the_weights() -> None:
    gc.collect()
    before = len(int8._ENTRIES)
    for _ in range(20):
        weight = weights(8, 16, 3, 3).clone()
        int8_layer(*call(drawn(1, 16, 5, 5), weight).values())
        assert len(int8._ENTRIES) <= before + 1
    assert len(int8._ENTRIES) == before + 1
    prepared = int8._ENTRIES[id(weight)].weight
    int8_layer(*call(drawn(1, 16, 5, 5), weight).values())
    assert int8._ENTRIES[id(weight)].weight is prepared
    del weight
    gc.collect()
    assert len(int8._ENTRIES) == before


def test_kernels_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "mmx")
    with pytest.raises(BinarizeError, match="BINARIZE_KERNELS='mmx'"):
        quantized(torch.zeros(2), 1.0, 0)
    native.int8_kernels.cache_clear()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(
    ("c_in", "c_out", "groups"),
    [(3, 16, 1), (16, 16, 16), (6, 12, 6), (15, 15, 3), (12, 6, 6), (8, 8, 4), (64, 32, 2)],
)
def test_both_ways_scale_alike(
    c_in: int, c_out: int, groups: int, activation: str, bias: bool
) -> None:
    """Sums first, then one product and one sum; on AVX2 the results agree bit by bit."""
    weight = torch.randint(-63, 64, (c_out, c_in // groups, 3, 3), dtype=torch.int8)
    gain, constant = torch.rand(c_out) / 100, torch.randn(c_out) if bias else None
    geometry: Any = [1, 1], [1] * 4, [1, 1], groups, False, [0, 0]
    given = torch.randn(2, c_in, 9, 7), 0.0313, 97, weight, gain, constant
    result = int8_layer(*given, *geometry, activation, [], None, 0)
    wanted = int8.reference(*given, *geometry, activation, [], None, 0)
    exact = torch.backends.cpu.get_cpu_capability() == "AVX2"
    torch.testing.assert_close(result, wanted, **({"rtol": 0, "atol": 0} if exact else {}))
