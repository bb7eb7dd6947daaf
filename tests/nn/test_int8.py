"""8-bit layers against their closed forms, written again in NumPy."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.errors import BinarizeError, ModelError
from binarize.nn import (
    Int8Conv1d,
    Int8Conv2d,
    Int8Conv3d,
    Int8ConvTranspose1d,
    Int8ConvTranspose2d,
    Int8ConvTranspose3d,
    Int8Linear,
)
from binarize.nn.input_range import InputRange
from binarize.nn.treated import TreatedLayer

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

# Class, the float one, arguments, options, shape of an input.
LAYERS: dict[str, tuple[Any, Any, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "plain": (Int8Conv2d, nn.Conv2d, (3, 5, 3), {}, (2, 3, 7, 9)),
    "padded": (Int8Conv2d, nn.Conv2d, (3, 5, 3), {"padding": (1, 2), "stride": 2}, (2, 3, 7, 9)),
    "no bias": (Int8Conv2d, nn.Conv2d, (4, 2, 1), {"bias": False}, (1, 4, 1, 1)),
    "groups": (Int8Conv2d, nn.Conv2d, (6, 9, 3), {"groups": 3, "dilation": (2, 1)}, (2, 6, 8, 5)),
    "depthwise": (Int8Conv2d, nn.Conv2d, (5, 5, 3), {"groups": 5, "padding": 1}, (1, 5, 5, 4)),
    "same": (Int8Conv2d, nn.Conv2d, (2, 3, (4, 3)), {"padding": "same"}, (2, 2, 5, 6)),
    "valid": (Int8Conv2d, nn.Conv2d, (2, 3, 2), {"padding": "valid"}, (2, 2, 5, 6)),
    **{
        mode: (
            Int8Conv2d,
            nn.Conv2d,
            (2, 3, (3, 2)),
            {"padding": (2, 1), "padding_mode": mode},
            (2, 2, 5, 4),
        )
        for mode in ("reflect", "replicate", "circular")
    },
    "one": (Int8Conv1d, nn.Conv1d, (3, 4, 5), {"padding": 2, "stride": 3}, (2, 3, 11)),
    "three": (Int8Conv3d, nn.Conv3d, (2, 4, (1, 3, 2)), {"groups": 2}, (1, 2, 3, 4, 5)),
    "transposed": (
        Int8ConvTranspose2d,
        nn.ConvTranspose2d,
        (4, 6, 3),
        {"stride": 2, "padding": 1, "output_padding": (1, 0), "groups": 2},
        (2, 4, 3, 5),
    ),
    "transposed depthwise": (
        Int8ConvTranspose2d,
        nn.ConvTranspose2d,
        (3, 3, 2),
        {"stride": 2, "groups": 3, "bias": False},
        (2, 3, 3, 2),
    ),
    "transposed one": (
        Int8ConvTranspose1d,
        nn.ConvTranspose1d,
        (3, 2, 4),
        {"stride": 3, "dilation": 2, "output_padding": 1},
        (2, 3, 5),
    ),
    "transposed three": (Int8ConvTranspose3d, nn.ConvTranspose3d, (2, 3, 2), {}, (1, 2, 2, 3, 2)),
    "linear": (Int8Linear, nn.Linear, (6, 4), {}, (3, 6)),
    "tokens": (Int8Linear, nn.Linear, (6, 4), {"bias": False}, (2, 3, 5, 6)),
    "vector": (Int8Linear, nn.Linear, (6, 4), {}, (6,)),
}


def made(name: str, kind: torch.dtype = torch.float32) -> tuple[Any, Any, Tensor]:
    """An 8-bit layer, the float layer with the same weight, and an input of zeros and numbers."""
    torch.manual_seed(len(name))
    cls, plain, args, options, shape = LAYERS[name]
    layer, other = cls(*args, **options).to(kind), plain(*args, **options).to(kind)
    other.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(shape).to(kind)
    x.view(-1)[::5] = 0
    return layer, other, x


def observed(layer: Any, low: float, high: float) -> Any:
    """Give a layer a range, in eval mode."""
    layer.input_range.limits.copy_(torch.tensor([low, high]))
    layer.input_range.num_batches_tracked.fill_(1)
    return layer.eval()


def on_levels(x: Tensor, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Values on 256 levels, and whether they were inside the range."""
    step = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    zero = np.rint(np.float32(-low) / step)
    place = np.rint(x.double().numpy() / np.float64(step)) + zero
    return (np.clip(place, 0, 255) - zero) * step, (place >= 0) & (place <= 255)


def weight_on_levels(weight: Tensor, transposed: bool, groups: int) -> tuple[np.ndarray, ...]:
    """Rounded weight, codes, and scales; one output channel after the other."""
    w = weight.detach().double().numpy()
    rounded, codes, scales = np.zeros_like(w), np.zeros_like(w), []
    per_group = w.shape[1] if transposed else w.shape[0] // groups
    for channel in range(per_group * groups):
        where: Any = channel
        if transposed:
            inputs = w.shape[0] // groups
            group = channel // per_group
            where = slice(group * inputs, (group + 1) * inputs), channel % per_group
        mantissa, exponent = np.frexp(np.float32(np.abs(w[where]).max()) / np.float32(63))
        scale = np.ldexp(np.ceil(np.float64(mantissa) * 2**16) / 2**16, exponent) or 1.0
        codes[where] = np.rint(w[where] / scale)
        rounded[where] = codes[where] * scale
        scales.append(scale)
    return rounded, codes, np.array(scales)


uneven = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.mark.parametrize("name", LAYERS)
@uneven
def test_forward_and_gradients(name: str) -> None:
    layer, plain, x = made(name)
    # A step of 1/32, which is exact, and both ends of the range in use.
    low, high = -40 / 32, 215 / 32
    x = x * 2
    x.view(-1)[0], x.view(-1)[-1] = -2.0, 9.0
    observed(layer, low, high)
    rounded, codes, _ = weight_on_levels(layer.weight, layer.transposed, layer.groups)
    assert np.abs(codes).max() == 63
    values, inside = on_levels(x, low, high)
    assert not inside.all()
    plain.weight.data = torch.from_numpy(rounded).float()
    given = torch.from_numpy(values).float().requires_grad_()
    mine = x.clone().requires_grad_()
    wanted, found = plain(given), layer(mine)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    back = torch.randn_like(wanted)
    wanted.backward(back)
    found.backward(back)
    assert given.grad is not None
    torch.testing.assert_close(mine.grad, given.grad * torch.from_numpy(inside))
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    if plain.bias is not None:
        torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


def run(layer: Any, x: Tensor, hooked: bool) -> list[Tensor]:
    """Result and gradients in training; a hook keeps the rounding and the convolution apart."""
    layer, mine = copy.deepcopy(layer), x.clone().requires_grad_()
    if hooked:
        layer.input_range.register_forward_hook(lambda *_: None)
    y = layer(mine)
    y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype))
    learned = [p.grad for p in layer.parameters() if p.grad is not None]
    return [y.detach(), mine.grad, *learned, *layer.input_range.buffers()]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", LAYERS)
@uneven
def test_a_hook_on_the_rounding_changes_no_number(name: str, kind: torch.dtype) -> None:
    layer, _, x = made(name, kind)
    near = {torch.float64: 1e-12, torch.float32: 1e-5}.get(kind, 0.02)
    for found, wanted in zip(run(layer, x, False), run(layer, x, True), strict=True):
        torch.testing.assert_close(found, wanted, rtol=near, atol=near)
    assert torch.equal(run(layer, x, False)[0], run(layer, x, True)[0])


# Another padding mode's padded feature map is kept, as by the float layer.
@pytest.mark.parametrize("name", [n for n in LAYERS if "padding_mode" not in LAYERS[n][3]])
@uneven
def test_only_what_exists_anyway_is_kept_for_the_gradients(name: str) -> None:
    layer, _, x = made(name)
    own = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters(), *layer.buffers())}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x.requires_grad_())
    sizes = [t.numel() for t in kept if t.untyped_storage().data_ptr() not in own]
    outputs = len(layer.packed_weight()[1])
    # Step and zero of the activations, and the steps of the weight, which broadcast.
    assert sum(sizes) <= 2 + outputs * (layer.weight.shape[0] if layer.transposed else 1)
    y.sum().backward()


def test_autocast_with_the_gradients_of_both() -> None:
    layer, _, x = made("padded")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x.requires_grad_())
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None
    assert [g.dtype for g in (x.grad, layer.weight.grad, layer.bias.grad)] == [torch.float32] * 3


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_float_layer_to_others(name: str) -> None:
    layer, plain, x = made(name)
    assert isinstance(layer, type(plain))
    assert layer.weight.shape == plain.weight.shape
    assert (layer.bias is None) == (plain.bias is None)
    assert set(layer.state_dict()) - set(plain.state_dict()) == {
        "input_range.limits",
        "input_range.num_batches_tracked",
    }
    assert (layer.weight_bits, layer.activation_bits) == (8, 8)
    assert layer.weights == plain.weight.numel()
    layer(x)
    layer.eval()
    wanted = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), wanted)
    fresh, _, _ = made(name)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.eval()(x), wanted)
    assert "bits=8" in repr(layer)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", TYPES)
def test_a_stored_weight_is_the_weight_in_use(name: str, kind: torch.dtype) -> None:
    layer, _, x = made(name, kind)
    with torch.no_grad():
        layer.weight[0].zero_()
    layer(x)
    layer.eval()
    wanted, codes, scale = layer(x), *layer.packed_weight()
    parts = layer.stored_parts(layer.weight)
    assert list(parts) == ["int8", "scale"]
    assert [(p.dtype, tuple(p.shape)) for p in (codes, scale)] == list(parts.values())
    assert scale.dtype == torch.float32
    assert codes.abs().amax() == 63
    other = copy.deepcopy(layer)
    other.weight.data = torch.full_like(other.weight, torch.nan)
    other.load_packed_weight(codes, scale)
    assert torch.equal(other(x), wanted)
    again = other.packed_weight()
    assert torch.equal(again[0], codes)
    assert torch.equal(again[1], scale)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 1.0, 500.0])
def test_storage_is_exact_for_any_weight_in_half_precision(kind: torch.dtype, size: float) -> None:
    layer = Int8Linear(9, 4000, bias=False).to(kind)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4000, 9) * size)
    wanted = layer.rounded_weight().detach()
    layer.load_packed_weight(*layer.packed_weight())
    assert torch.equal(layer.rounded_weight(), wanted)


@pytest.mark.parametrize("name", ["groups", "transposed", "transposed depthwise", "tokens"])
def test_codes_and_scales(name: str) -> None:
    layer, _, _ = made(name)
    _, codes, scales = weight_on_levels(layer.weight, layer.transposed, layer.groups)
    found = layer.packed_weight()
    assert np.array_equal(found[0].numpy(), codes)
    assert np.array_equal(found[1].double().numpy(), scales)
    # At most 16 bits each: times a code of 6 bits, float32 has the product.
    mantissa = np.frexp(scales)[0] * 2**16
    assert np.array_equal(mantissa, np.rint(mantissa))


@pytest.mark.parametrize("name", ["plain", "depthwise", "transposed", "linear"])
def test_a_weight_of_zeros(name: str) -> None:
    layer, _, x = made(name)
    with torch.no_grad():
        layer.weight.zero_()
    y = layer(x)
    bias = layer.bias.detach() if name == "linear" else layer.bias.detach().view(1, -1, 1, 1)
    assert torch.equal(y.detach(), bias.expand_as(y))
    codes, scale = layer.packed_weight()
    assert not codes.any()
    assert torch.equal(scale, torch.ones_like(scale))
    y.sum().backward()
    assert layer.weight.grad.isfinite().all()


# Ranges


def test_exact_halves_go_to_the_even_code() -> None:
    part = InputRange().eval()
    part.limits.copy_(torch.tensor([-3.0, 252.0]))
    part.num_batches_tracked.fill_(1)
    x = torch.tensor([-0.5, 0.5, 1.5, 2.5, -1.5, -2.5, -3.5, -3.6, 251.5, 252.5, 253.5, 0.0])
    wanted = [0.0, 0, 2, 2, -2, -2, -3, -3, 252, 252, 252, 0]
    assert part(x).tolist() == wanted


@pytest.mark.parametrize("momentum", [0.1, 0.5, None])
def test_limits_are_running_averages(momentum: float | None) -> None:
    part = InputRange()
    assert part.momentum == 0.1
    part.momentum = momentum
    assert not part.is_observed
    lows, highs = [], []
    for size in range(1, 16):
        x = torch.randn(size, 3, 2) * size
        part(x)
        lows.append(min(x.min().item(), 0.0))
        highs.append(max(x.max().item(), 0.0))
    assert part.num_batches_tracked == 15
    wanted = []
    for values in (lows, highs):
        average = values[0]
        for count, value in enumerate(values[1:], 2):
            # While there are few batches, they have equal weight.
            share = 1 / count if momentum is None else max(momentum, 1 / count)
            average += share * (value - average)
        wanted.append(average)
    if momentum is None:
        assert wanted == pytest.approx([np.mean(lows), np.mean(highs)])
    assert part.limits.tolist() == pytest.approx(wanted, rel=1e-5)


def test_evaluation_changes_no_range_and_reset_forgets_it() -> None:
    layer = Int8Conv2d(2, 3, 1)
    layer(torch.randn(2, 2, 3, 3))
    layer.eval()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    layer(100 * torch.randn(2, 2, 3, 3))
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    layer.input_range.reset_running_stats()
    assert not layer.input_range.is_observed
    assert layer.input_range.limits.tolist() == [0, 0]
    x = 100 * torch.randn(2, 2, 3, 3)
    assert layer.input_range(x).amax() == pytest.approx(x.amax().item(), rel=1e-2)


def test_without_a_range_each_batch_has_its_own() -> None:
    part = InputRange().eval()
    for size in (0.01, 1.0, 1000.0):
        x = torch.randn(50) * size
        values, _ = on_levels(x, x.min().item(), x.max().item())
        torch.testing.assert_close(part(x), torch.from_numpy(values).float())
    assert part.num_batches_tracked == 0
    assert part.limits.tolist() == [0, 0]


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0, 1e-30, 1e30])
@pytest.mark.parametrize("training", [False, True])
def test_a_constant_input(value: float, training: bool) -> None:
    part = InputRange().train(training)
    x = torch.full((2, 3), value)
    for _ in range(3):
        assert torch.allclose(part(x), x, rtol=1e-5, atol=1e-35)
    assert part(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [0.0, 3.0, -2.0])
def test_a_packed_layer_of_a_constant_input(value: float) -> None:
    layer = Int8Conv2d(2, 3, 3, padding=1)
    x = torch.full((1, 2, 4, 4), value)
    layer(x)
    layer.eval()
    packed = binarize.pack(layer)
    for given in (x, torch.zeros_like(x), 2 * x):
        torch.testing.assert_close(packed(given), layer(given))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_range_reaches_to_zero(sign: int) -> None:
    part = InputRange()
    part(sign * (torch.rand(20) + 1))
    assert 0 in part.limits.tolist()
    assert part(torch.zeros(2)).tolist() == [0, 0]


def test_an_empty_batch_changes_nothing() -> None:
    layer = Int8Conv2d(2, 3, 1)
    assert layer(torch.randn(0, 2, 4, 4)).shape == (0, 3, 4, 4)
    assert not layer.input_range.is_observed
    layer(torch.randn(1, 2, 4, 4))
    before = layer.input_range.limits.clone()
    layer(torch.randn(0, 2, 4, 4)).sum().backward()
    assert torch.equal(layer.input_range.limits, before)
    assert layer.input_range.num_batches_tracked == 1
    linear = Int8Linear(4, 3)
    assert linear(torch.randn(0, 4)).shape == (0, 3)
    assert linear(torch.randn(2, 0, 4)).shape == (2, 0, 3)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_a_number_stops_nothing_but_packing(value: float) -> None:
    layer = Int8Conv2d(2, 3, 3)
    x = torch.randn(1, 2, 4, 4)
    layer(x)
    layer.eval()
    broken = x.clone()
    broken[0, 0, 0, 0] = value
    layer(broken).sum().backward()
    binarize.pack(layer)(broken)
    layer.train()
    layer(broken).sum().backward()  # as a batch norm, it is spoilt from here on
    layer.eval()
    with pytest.raises(ModelError) as caught:
        binarize.pack(layer)
    assert "is not finite; call binarize.recalibrate(model, batches)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", TYPES)
def test_every_floating_type(kind: torch.dtype) -> None:
    layer = Int8Conv2d(3, 4, 3, padding=1).to(kind)
    x = torch.randn(2, 3, 5, 6).to(kind).requires_grad_()
    y = layer(x)
    assert y.dtype == kind
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == layer.weight.grad.dtype == kind
    assert x.grad.any()


@pytest.mark.parametrize("name", ["plain", "depthwise", "transposed", "three"])
def test_any_strides(name: str) -> None:
    layer, _, x = made(name)
    layer(x)
    layer.eval()
    wanted = layer(x)
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    apart = torch.stack([x, -x], -1)[..., 0]
    assert not apart.is_contiguous()
    for other in (x.contiguous(memory_format=last), apart):
        torch.testing.assert_close(layer(other), wanted)


def test_a_shared_layer_observes_both_inputs() -> None:
    layer = Int8Linear(3, 3)
    layer(torch.tensor([[-1.0, 0, 3]]))
    layer(torch.tensor([[-3.0, 0, 1]]))
    assert layer.input_range.num_batches_tracked == 2
    assert layer.input_range.limits.tolist() == [-2, 2]


def test_a_size_that_is_asked_for() -> None:
    layer, plain, x = made("transposed")
    for size in ([6, 9], [5, 10], [6, 10]):
        assert layer(x, output_size=size).shape == plain(x, output_size=size).shape
    layer.eval()
    packed = binarize.pack(layer)
    torch.testing.assert_close(packed(x, output_size=[5, 10]), layer(x, output_size=[5, 10]))


@pytest.mark.parametrize(
    ("pads", "own"),
    [
        *(
            (pads, own)
            for pads in ((1, 0), (1, 0, 0, 2), (0, 0, 3, 1))
            for own in ({}, {"padding": 1}, {"padding": 1, "padding_mode": "reflect"})
        ),
        ((-1, 0, 0, -1), {}),
        ((-1, -1, -1, -1), {}),
    ],
)
def test_padding_before_the_own(pads: tuple[int, ...], own: dict[str, Any]) -> None:
    layer = Int8Conv2d(2, 3, (3, 2), pre_padding=pads, **own)
    x = torch.randn(2, 2, 7, 6)
    plain = nn.Conv2d(2, 3, (3, 2), **own)
    plain.load_state_dict({"weight": layer.rounded_weight(), "bias": layer.bias})
    layer(x)
    layer.eval()
    wanted = plain(F.pad(layer.input_range(x), pads))
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(binarize.pack(layer)(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 5), (6, 7), (1, 2)])
@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("cls", [nn.Conv2d, nn.Conv1d])
def test_padding_to_same_of_tensorflow(cls: Any, size: tuple[int, int], stride: Any) -> None:
    from timm.layers.padding import get_same_padding

    spatial = 2 if cls is nn.Conv2d else 1
    stride = stride if spatial == 2 or isinstance(stride, int) else stride[0]
    kernel = (3, 4)[:spatial]
    layer = (Int8Conv2d if spatial == 2 else Int8Conv1d)(
        2, 3, kernel, stride=stride, dilation=2, pre_padding="same"
    )
    x = torch.randn(2, 2, *size[:spatial])
    plain = cls(2, 3, kernel, stride=stride, dilation=2)
    plain.load_state_dict({"weight": layer.rounded_weight(), "bias": layer.bias})
    layer(x)
    layer.eval()
    pads: list[int] = []
    for d in reversed(range(spatial)):
        total = get_same_padding(x.shape[2 + d], kernel[d], layer.stride[d], 2)
        pads += [total // 2, total - total // 2]
    wanted = plain(F.pad(layer.input_range(x), pads))
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(binarize.pack(layer)(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", TYPES)
@uneven
def test_packed_twins(name: str, kind: torch.dtype) -> None:
    layer, plain, x = made(name, kind)
    layer(x)
    layer.eval()
    packed = binarize.pack(layer)
    twin: Any = packed.network
    assert not isinstance(twin, TreatedLayer)
    assert isinstance(twin, type(plain))
    assert (twin.weight.shape, twin.weight.dtype) == (layer.weight.shape, kind)
    assert twin.codes.dtype == torch.int8
    # Sums of integers are exact, those of the simulation have the type's rounding.
    room = {torch.float16: 4e-3, torch.bfloat16: 3e-2}.get(kind, 1e-5)
    last = x
    if x.dim() > 3:
        form = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        last = x.contiguous(memory_format=form)
    with torch.no_grad():
        wanted = layer(x)
        for given in (x, last, torch.stack([x, -x], -1)[..., 0]):
            # That programs do the same is seen in one type.
            calls = [twin, packed, packed] if kind == torch.float32 else [twin]
            for result in (call(given) for call in calls):
                assert result.dtype == kind
                torch.testing.assert_close(result, wanted, rtol=room, atol=room)
        if x.dim() > 1:
            assert torch.equal(twin(x[:1]), twin(x)[:1])
            assert packed(x[:0]).shape == layer(x[:0]).shape
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other.network(x), twin(x))


def test_tokens_without_positions() -> None:
    layer = Int8Linear(4, 3)
    layer(torch.randn(2, 4))
    packed = binarize.pack(layer.eval())
    for shape in ((0, 4), (2, 0, 4), (0, 3, 4)):
        x = torch.randn(shape)
        assert packed.network(x).shape == packed(x).shape == layer(x).shape


@pytest.mark.parametrize("cls", [nn.Conv1d, nn.Conv2d, nn.Conv3d])
def test_feature_maps_without_a_batch(cls: Any) -> None:
    spatial = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[cls]
    made: Any = (Int8Conv1d, Int8Conv2d, Int8Conv3d)[spatial - 1]
    other: Any = (Int8ConvTranspose1d, Int8ConvTranspose2d, Int8ConvTranspose3d)[spatial - 1]
    x = torch.randn(3, *(5, 4, 6)[:spatial])
    for layer in (made(3, 2, 3, padding=1), made(3, 2, 3, pre_padding="same"), other(3, 2, 2)):
        layer(x[None])
        layer.eval()
        wanted = layer(x[None])[0]
        torch.testing.assert_close(layer(x), wanted)
        torch.testing.assert_close(binarize.pack(layer)(x), wanted)


@pytest.mark.parametrize("cls", [Int8Conv2d, Int8ConvTranspose2d])
def test_without_a_range_there_is_nothing_to_pack(cls: Any) -> None:
    layer = cls(2, 3, 1).eval()
    layer(torch.randn(1, 2, 3, 3))
    with pytest.raises(ModelError) as caught:
        binarize.pack(layer)
    assert str(caught.value) == (
        f"model='{cls.__name__}': the range of this 8-bit layer's input was never observed; "
        "train it, or call binarize.recalibrate(model, batches)"
    )
    layer.site = "body.0"
    with pytest.raises(ModelError, match=r"model='body\.0'"):
        binarize.pack(nn.Sequential(layer).eval())


@pytest.mark.parametrize("name", ["plain", "transposed", "linear", "one"])
def test_integers_are_refused(name: str) -> None:
    layer, _, x = made(name)
    layer(x)
    packed = binarize.pack(layer.eval())
    for network in (layer, packed.network):
        with pytest.raises(BinarizeError) as caught:
            network(x.to(torch.uint8))
        assert "convert it: x.float()" in str(caught.value)


def test_files_of_torch(tmp_path: Any) -> None:
    layer, _, x = made("depthwise")
    layer(x)
    data = io.BytesIO()
    torch.save(layer.state_dict(), data)
    data.seek(0)
    fresh, _, _ = made("depthwise")
    fresh.load_state_dict(torch.load(data, weights_only=True))
    assert torch.equal(fresh.eval()(x), layer.eval()(x))
