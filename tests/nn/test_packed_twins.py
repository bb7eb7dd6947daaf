"""A packed layer against the original in eval mode, on the same input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError
from binarize.nn import (
    BiConv1d,
    BiConv2d,
    BiConv3d,
    BiConvTranspose2d,
    BiLinear,
    ShiftedPReLU,
    UnitSpec,
)
from binarize.nn.packed import PackedActivation, PackedUnit, StoredWeight, pack_layer
from binarize.nn.parts import ACTIVATIONS, BINARIZERS, WEIGHTS

RELEASED = UnitSpec(
    binarizer_options={"scale": "channel"}, bypass="interleaved", transposed_scale="input-channel"
)
# Class, positional arguments, keywords, input shape.
LAYERS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "3x3": (BiConv2d, (5, 7, 3), {"padding": 1}, (2, 5, 9, 8)),
    "odd size, stride 2": (BiConv2d, (6, 12, 3), {"stride": 2, "padding": 1}, (2, 6, 9, 8)),
    "strides differ": (BiConv2d, (9, 4, (3, 2)), {"stride": (2, 3)}, (1, 9, 11, 9)),
    "padding same": (BiConv2d, (6, 6, 4), {"padding": "same"}, (2, 6, 7, 7)),
    "padding valid": (BiConv2d, (6, 6, 5), {"padding": "valid", "dilation": 2}, (1, 6, 13, 12)),
    "padded too much": (BiConv2d, (6, 9, 3), {"padding": 3, "stride": 2}, (2, 6, 5, 6)),
    "grouped, reflected": (
        BiConv2d,
        (6, 4, 3),
        {"padding": 2, "groups": 2, "padding_mode": "reflect"},
        (2, 6, 5, 6),
    ),
    "depthwise": (BiConv2d, (70, 70, 5), {"groups": 70, "padding": 2}, (1, 70, 6, 5)),
    "SAME, stride 1": (BiConv2d, (6, 8, 4), {"pre_padding": "same"}, (2, 6, 9, 10)),
    "SAME, stride 2": (BiConv2d, (6, 8, 3), {"pre_padding": "same", "stride": 2}, (2, 6, 9, 10)),
    "SAME, stride 3": (BiConv2d, (6, 8, 2), {"pre_padding": "same", "stride": 3}, (2, 6, 8, 10)),
    "asymmetric": (BiConv2d, (6, 8, 3), {"pre_padding": (1, 2, 0, 1), "stride": 2}, (2, 6, 7, 8)),
    "asymmetric, reflects nothing": (
        BiConv2d,
        (6, 8, 3),
        {"pre_padding": (1, 2, 0, 1), "padding": "valid", "padding_mode": "reflect"},
        (2, 6, 7, 8),
    ),
    "asymmetric and circular": (
        BiConv2d,
        (6, 8, 3),
        {"pre_padding": (1, 2, 0, 1), "padding": 1, "padding_mode": "circular"},
        (2, 6, 7, 8),
    ),
    "no bypass": (BiConv2d, (6, 8, 3), {"bypass": False, "stride": 2}, (2, 6, 7, 8)),
    "1-D": (BiConv1d, (6, 9, 5), {"stride": 2, "padding": 2}, (2, 6, 13)),
    "3-D": (BiConv3d, (6, 4, 3), {"stride": (1, 2, 1), "padding": 1}, (1, 6, 3, 5, 4)),
    "up": (BiConvTranspose2d, (6, 9, 4), {"stride": 2, "padding": 1, "groups": 3}, (2, 6, 4, 5)),
    "up, output padded": (
        BiConvTranspose2d,
        (6, 9, 3),
        {"stride": (2, 3), "padding": 1, "output_padding": (1, 2)},
        (2, 6, 4, 5),
    ),
    "linear on rows": (BiLinear, (6, 9), {}, (3, 6)),
    "linear on maps": (BiLinear, (9, 6), {}, (2, 4, 5, 9)),
    "one position": (BiConv2d, (6, 4, 3), {"padding": 1}, (2, 6, 1, 1)),
    "no sample": (BiConv2d, (6, 4, 3), {"padding": 1}, (0, 6, 4, 4)),
    "no sample, linear": (BiLinear, (6, 6), {}, (0, 4, 6)),
    "released": (BiConv2d, (8, 12, 3), {"padding": 1, "unit": RELEASED}, (2, 8, 5, 6)),
    "released, depthwise": (BiConv2d, (8, 8, 3), {"groups": 8, "unit": RELEASED}, (2, 8, 5, 6)),
    "released, up": (BiConvTranspose2d, (8, 4, 2), {"stride": 2, "unit": RELEASED}, (2, 8, 3, 4)),
}
FLOAT = ("released", "released, depthwise", "released, up", "asymmetric and circular")


def build(name: str) -> tuple[Any, Tensor]:
    cls, arguments, keywords, shape = LAYERS[name]
    layer = cls(*arguments, **keywords)
    with torch.no_grad():
        for part in (layer.binarizer.k, layer.binarizer.b, layer.norm.bias):
            part.normal_()
        layer.binarizer.a.uniform_(-1, 1)
        layer.norm.weight.uniform_(-1.5, 1.5)
        layer.norm.running_mean.normal_()
        layer.norm.running_var.uniform_(0.5, 2)
    return layer.eval(), torch.randn(shape)


def twin_of(layer: Any) -> Any:
    return pack_layer(layer, *layer.packed_weight())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
def test_agrees_with_its_layer(name: str) -> None:
    layer, x = build(name)
    before = copy.deepcopy(layer.state_dict())
    twin = twin_of(layer)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), layer(x), atol=2e-5, rtol=1e-5)
        spread = x.repeat_interleave(2, -1)[..., ::2]  # not contiguous
        torch.testing.assert_close(twin(spread), layer(x), atol=2e-5, rtol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert not twin.training


@pytest.mark.parametrize("name", LAYERS)
def test_holds_bits_and_no_float_weight(name: str) -> None:
    layer, _ = build(name)
    twin = twin_of(layer)
    assert isinstance(twin, PackedUnit) == (name not in FLOAT)
    assert isinstance(getattr(twin, "quantizer", None), StoredWeight) == (name in FLOAT)
    held = [*twin.parameters(), *twin.buffers()]
    largest = max(t.numel() for t in held if t.is_floating_point())
    assert largest <= max(layer.weight.shape[0] * 2, layer.norm.num_features, 70)
    assert any(t.dtype == torch.uint8 for t in held)
    assert layer.weight.numel() > 0


def test_says_why_it_does_not_count() -> None:
    reasons = {name: twin_of(build(name)[0]).quantizer.reason for name in FLOAT}
    assert reasons == {
        "released": "the scale of its activations, one per channel, is inside the channel sum",
        "released, depthwise": "its activations have a scale per channel",
        "released, up": "the scale of its activations, one per channel, is inside the channel sum",
        "asymmetric and circular": "it pads twice, in different ways",
    }


def test_norm_without_statistics() -> None:
    layer, x = build("3x3")
    layer.norm = nn.BatchNorm2d(7, track_running_stats=False).eval()
    twin = twin_of(layer)
    assert twin.quantizer.reason == "its norm uses the statistics of the batch"
    with torch.no_grad():
        torch.testing.assert_close(twin(x), layer(x))


def test_norm_without_affine_part() -> None:
    layer, x = build("3x3")
    layer.norm = nn.BatchNorm2d(7, affine=False).eval()
    twin = twin_of(layer)
    assert isinstance(twin, PackedUnit)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), layer(x), atol=2e-5, rtol=1e-5)


def test_output_size_of_a_transposed_convolution() -> None:
    layer = build("up")[0]
    x = torch.randn(1, 6, 4, 5)
    with torch.no_grad():
        y = layer(x, output_size=[9, 10])
        torch.testing.assert_close(twin_of(layer)(x, output_size=[9, 10]), y, atol=2e-5, rtol=1e-5)
        assert y.shape[2:] == (9, 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_in_and_out(dtype: torch.dtype) -> None:
    layer, x = build("3x3")
    twin = twin_of(layer).to(dtype)  # the kernel's numbers stay in float32
    y = twin(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y, twin_of(layer)(x.to(dtype).float()).to(dtype))
    with pytest.raises(BinarizeError, match="a binary layer needs floating-point input"):
        twin(torch.zeros(1, 5, 4, 4, dtype=torch.uint8))


@pytest.mark.parametrize("out_shift", [True, False])
@pytest.mark.parametrize(("dim", "shape"), [(1, (2, 3, 4, 5)), (-1, (2, 4, 3)), (1, (0, 3, 2, 2))])
def test_activation(out_shift: bool, dim: int, shape: tuple[int, ...]) -> None:
    activation = ShiftedPReLU(3, out_shift=out_shift, channel_dim=dim)
    with torch.no_grad():
        for parameter in activation.parameters():
            parameter.normal_()
        x = torch.randn(shape)
        torch.testing.assert_close(PackedActivation(activation)(x), activation(x))


@pytest.mark.parametrize("quantizer", WEIGHTS)
@pytest.mark.parametrize("transposed", [False, True])
def test_every_weight_binarizer(quantizer: str, transposed: bool) -> None:
    spec = UnitSpec(weight=quantizer)
    conv: Any = BiConvTranspose2d if transposed else BiConv2d
    check_parts(conv(6, 4, 3, padding=1, groups=2, unit=spec))


@pytest.mark.parametrize("binarizer", BINARIZERS)
def test_every_activation_binarizer(binarizer: str) -> None:
    check_parts(BiConv2d(6, 4, 3, padding=1, unit=UnitSpec(binarizer=binarizer)))
    check_parts(BiLinear(6, 4, unit=UnitSpec(binarizer=binarizer)), (2, 7, 6))


@pytest.mark.parametrize("inner", ACTIVATIONS)
def test_activation_in_front_of_the_bypass(inner: str) -> None:
    spec = UnitSpec(inner=inner)
    check_parts(BiConv2d(6, 4, 3, stride=2, unit=spec))
    check_parts(BiConv2d(6, 4, 3, pre_padding="same", stride=2, unit=spec))
    check_parts(BiConvTranspose2d(6, 4, 3, unit=spec))
    check_parts(BiLinear(6, 4, unit=spec), (2, 7, 6))


def check_parts(layer: Any, shape: tuple[int, ...] = (2, 6, 5, 4)) -> None:
    with torch.no_grad():
        for parameter in (*layer.binarizer.parameters(), *layer.norm.parameters()):
            parameter.uniform_(0.3, 1)
        layer(torch.randn(shape))  # what keeps statistics takes them when training
        layer.eval()
        x = torch.randn(shape)
        torch.testing.assert_close(twin_of(layer)(x), layer(x), atol=2e-5, rtol=1e-5)
