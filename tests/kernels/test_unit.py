"""``binarize::unit`` against the training layers in eval mode: the op as it is registered."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from binarize.errors import BinarizeError
from binarize.kernels import Layout, pack_weight, run_unit, unit, unpack_weight
from binarize.nn import (
    BiConv1d,
    BiConv2d,
    BiConv3d,
    BiConvTranspose1d,
    BiConvTranspose2d,
    BiConvTranspose3d,
    BiLinear,
    ShiftedPReLU,
    UnitSpec,
)

INTERLEAVED = UnitSpec(bypass="interleaved")
# Class, positional arguments, keywords, input size.
LAYERS: dict[str, tuple[type[nn.Module], tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "3x3": (BiConv2d, (5, 7, 3), {"padding": 1}, (9, 8)),
    "stride 2": (BiConv2d, (66, 130, 3), {"stride": 2, "padding": 1}, (9, 12)),
    "strides differ": (BiConv2d, (9, 4, (3, 2)), {"stride": (2, 3), "padding": (1, 0)}, (11, 9)),
    "dilated": (BiConv2d, (16, 16, 3), {"dilation": 2, "padding": "same"}, (7, 7)),
    "even kernel": (BiConv2d, (16, 16, 4), {"padding": 2}, (7, 6)),
    "unpadded": (BiConv2d, (24, 32, 5), {}, (9, 8)),
    "padded too much": (BiConv2d, (24, 32, 3), {"padding": 3}, (4, 5)),
    "projection": (BiConv2d, (24, 48, 1), {"stride": 2}, (9, 8)),
    "interleaved": (BiConv2d, (64, 10, 1), {"unit": INTERLEAVED}, (3, 4)),
    "one output": (BiConv2d, (64, 1, 1), {}, (3, 4)),
    "grouped": (BiConv2d, (12, 18, 3), {"groups": 3, "padding": 1}, (5, 6)),
    "depthwise": (BiConv2d, (70, 70, 7), {"groups": 70, "padding": 3}, (9, 8)),
    "depthwise, multiplied": (BiConv2d, (6, 12, 3), {"groups": 6, "stride": 2}, (9, 8)),
    "reflected": (BiConv2d, (17, 5, 3), {"padding": 1, "padding_mode": "reflect"}, (5, 6)),
    "replicated": (BiConv2d, (65, 5, 5), {"padding": 2, "padding_mode": "replicate"}, (5, 6)),
    "circular": (BiConv2d, (3, 5, 3), {"padding": 1, "padding_mode": "circular"}, (5, 6)),
    "no bypass": (BiConv2d, (3, 5, 3), {"bypass": False}, (5, 6)),
    "1-D": (BiConv1d, (6, 9, 5), {"stride": 2, "padding": 2}, (13,)),
    "3-D": (BiConv3d, (6, 4, 3), {"stride": (1, 2, 1), "padding": 1}, (3, 5, 4)),
    "up 1-D": (BiConvTranspose1d, (6, 9, 4), {"stride": 2, "padding": 1}, (7,)),
    "up": (BiConvTranspose2d, (65, 32, 2), {"stride": 2}, (4, 5)),
    "up, output padded": (
        BiConvTranspose2d,
        (6, 9, 3),
        {"stride": (2, 3), "padding": 1, "output_padding": (1, 2), "groups": 3},
        (4, 5),
    ),
    "up, dilated": (
        BiConvTranspose2d,
        (6, 8, 3),
        {"stride": 2, "padding": 1, "dilation": 2, "groups": 2},
        (4, 5),
    ),
    "up, stride above kernel": (BiConvTranspose2d, (6, 8, 2), {"stride": 3}, (4, 5)),
    "up 3-D": (BiConvTranspose3d, (6, 5, 2), {"stride": 2}, (2, 3, 2)),
}


def randomize(layer: nn.Module) -> None:
    """Give a layer the values that a training might have left."""
    part: Any = layer
    with torch.no_grad():
        for parameter in (part.binarizer.k, part.binarizer.b, part.binarizer.a, part.norm.bias):
            parameter.normal_()
        part.norm.weight.uniform_(0.5, 1.5)
        part.norm.running_mean.normal_()
        part.norm.running_var.uniform_(0.5, 2)
    layer.eval()


def arguments(layer: nn.Module, **changes: Any) -> dict[str, Any]:
    """All arguments but ``sources`` and ``upsample``."""
    part: Any = layer
    dims = len(part.stride)
    transposed = hasattr(part, "output_padding") and part.transposed
    signs, scale = part.binary_weight()
    per_output = scale.flatten()
    if transposed:
        per_output = part.quantizer.scale(part.weight)
    norm = part.norm
    rate = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    same = part.padding == "same"
    padding = []
    for k, d, p in zip(
        part.kernel_size, part.dilation, (0,) * dims if same else part.padding, strict=True
    ):
        total = d * (k - 1)
        padding += [total // 2, total - total // 2] if same else [p, p]
    offset = [0] * dims
    if part.bypass is not None and not transposed:
        for d, (s, c) in enumerate(zip(part.bypass.stride, part.bypass.surplus, strict=True)):
            offset[d] = -((-c) // 2) if c < 0 else (c // 2 if c >= s else 0)
    values = {
        "means": [],
        "weight": pack_weight(
            signs,
            stride=part.stride,
            dilation=part.dilation,
            groups=part.groups,
            transposed=transposed,
        ),
        "gain": per_output * rate,
        "offset": norm.bias - norm.running_mean * rate,
        "mean_gain": part.binarizer.k,
        "threshold": part.binarizer.b,
        "flip": None,
        "exponent": part.binarizer.a[0],
        "kernel": part.kernel_size,
        "stride": part.stride,
        "padding": padding,
        "dilation": part.dilation,
        "groups": part.groups,
        "padding_mode": part.padding_mode,
        "transposed": transposed,
        "output_padding": part.output_padding if transposed else [0] * dims,
        "bypass": "none" if part.bypass is None else part.bypass.grouping,
        "bypass_offset": offset,
        "residuals": [],
        "act_shift": None,
        "act_slope": None,
        "act_out_shift": None,
        "want_means": False,
    }
    assert changes.keys() <= values.keys()
    values.update(changes)
    return {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in values.items()}


def build(name: str) -> tuple[Any, torch.Tensor]:
    make, positional, keywords, size = LAYERS[name]
    layer = make(*positional, **keywords)
    randomize(layer)
    x = torch.randn(2, positional[0], *size) + torch.randn(positional[0], *(1,) * len(size))
    x[0, 0].fill_(0)
    return layer, x


@pytest.mark.parametrize("name", LAYERS)
def test_unit_is_the_layer_in_eval_mode(name: str) -> None:
    layer, x = build(name)
    values = arguments(layer)
    with torch.no_grad():
        expected = layer(x)
    y, means = unit([x], [1], **values)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=2e-5)
    assert means.numel() == 0
    assert y.movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("name", LAYERS)
def test_weight_comes_back_from_the_layout(name: str) -> None:
    layer, _ = build(name)
    values = arguments(layer)
    layout = Layout(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.dilation,
        layer.groups,
        values["transposed"],
    )
    again = unpack_weight(values["weight"], layout, layer.kernel_size, values["transposed"])
    assert torch.equal(again, layer.binary_weight()[0].detach())
    assert values["weight"].numel() == layout.bytes


def test_asymmetric_padding_and_the_bypass_that_goes_with_it() -> None:
    layer = BiConv2d(6, 8, 3, stride=2, pre_padding="same")
    randomize(layer)
    x = torch.randn(2, 6, 8, 7)
    values = arguments(layer, padding=[0, 1, 1, 1], bypass_offset=[0, 0])
    y, _ = unit([x], [1], **values)
    torch.testing.assert_close(y, layer(x).detach(), rtol=1e-5, atol=1e-5)


def test_linear_layer_is_a_pointwise_convolution() -> None:
    layer = BiLinear(70, 33)
    randomize(layer)
    x = torch.randn(2, 5, 3, 70)
    conv = BiConv2d(70, 33, 1)
    conv.binarizer, conv.norm = layer.binarizer, layer.norm
    with torch.no_grad():
        conv.weight.copy_(layer.weight.view(33, 70, 1, 1))
    conv.eval()
    y, _ = unit([x.flatten(1, 2).movedim(2, 1).unsqueeze(3)], [1], **arguments(conv))
    assert y.movedim(1, -1).is_contiguous()
    torch.testing.assert_close(y.movedim(1, -1).view(2, 5, 3, 33), layer(x).detach())


def test_joined_sources_are_upsampled_on_the_fly() -> None:
    layer = BiConv2d(70 + 6 + 1, 20, 3, padding=1)
    randomize(layer)
    parts = [torch.randn(2, 70, 3, 3), torch.randn(2, 6, 6, 6), torch.randn(2, 1, 1, 1)]
    sizes = [2, 1, 6]
    whole = torch.cat(
        [F.interpolate(p, scale_factor=float(s)) for p, s in zip(parts, sizes, strict=True)], 1
    )
    y, _ = unit(parts, sizes, **arguments(layer))
    torch.testing.assert_close(y, layer(whole).detach(), rtol=1e-5, atol=1e-5)
    means = [p.mean((2, 3)) for p in parts]
    y, _ = unit(parts, sizes, **arguments(layer, means=means))
    torch.testing.assert_close(y, layer(whole).detach(), rtol=1e-5, atol=1e-5)


def test_residuals_activation_and_means_come_last() -> None:
    layer = BiConv2d(6, 8, 3, padding=1)
    randomize(layer)
    act = ShiftedPReLU(8)
    with torch.no_grad():
        for p in act.parameters():
            p.normal_()
    x = torch.randn(2, 6, 5, 4)
    residuals = [torch.randn(2, 8, 5, 4), torch.randn(2, 8, 5, 4)]
    values = arguments(
        layer,
        residuals=residuals,
        act_shift=act.shift,
        act_slope=act.slope,
        act_out_shift=act.out_shift,
        want_means=True,
    )
    y, means = unit([x], [1], **values)
    with torch.no_grad():
        expected = act(layer(x) + residuals[0] + residuals[1])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(means, expected.mean((2, 3)), rtol=1e-5, atol=1e-5)


def test_without_mean_or_exponent_the_threshold_is_fixed_and_the_scale_one() -> None:
    layer = BiConv2d(3, 4, 1, bypass=False)
    x = torch.tensor([-1.0, 0.0, 2.0]).view(1, 3, 1, 1)
    values = arguments(
        layer,
        mean_gain=None,
        exponent=None,
        threshold=torch.tensor([-1.0, 0.5, 1.0]),
        gain=torch.ones(4),
        offset=torch.zeros(4),
    )
    signs = torch.tensor([1.0, -1.0, 1.0])
    y, _ = unit([x], [1], **values)
    assert torch.equal(y.flatten(), layer.binary_weight()[0][:, :, 0, 0] @ signs)
    values["flip"] = torch.tensor([True, True, False])
    y, _ = unit([x], [1], **values)
    signs = torch.tensor([1.0, 1.0, 1.0])
    assert torch.equal(y.flatten(), layer.binary_weight()[0][:, :, 0, 0] @ signs)


def test_nan_counts_as_plus_one() -> None:
    x = torch.full((1, 2, 1, 1), torch.nan)
    layer = BiConv2d(2, 1, 1, bypass=False)
    values = arguments(
        layer,
        mean_gain=None,
        exponent=None,
        threshold=torch.zeros(2),
        flip=torch.tensor([True, False]),
        gain=torch.ones(1),
        offset=torch.zeros(1),
        weight=pack_weight(torch.ones(1, 2, 1, 1), stride=(1, 1), dilation=(1, 1)),
    )
    assert unit([x], [1], **values)[0].item() == 2


def test_exports_with_sizes_that_vary() -> None:
    layer = BiConv2d(6, 8, 3, stride=2, padding=1)
    randomize(layer)
    values = arguments(layer, want_means=True)

    class Packed(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return unit([x], [1], **values)

    dim = torch.export.Dim
    exported = torch.export.export(
        Packed(),
        (torch.randn(2, 6, 9, 8),),
        dynamic_shapes=({0: dim("n"), 2: dim("h", min=4), 3: dim("w", min=4)},),
    )
    x = torch.randn(3, 6, 14, 11)
    for got, expected in zip(exported.module()(x), Packed()(x), strict=True):
        assert torch.equal(got, expected)


def test_calls_past_the_dispatcher_are_traced_all_the_same() -> None:
    layer, x = build("3x3")
    arguments_in_order = list(arguments(layer).values())

    class Packed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return run_unit([x], [1], *arguments_in_order)[0]

    expected = Packed()(x)
    assert torch.equal(expected, unit([x], [1], *arguments_in_order)[0])
    traced = make_fx(Packed())(x)
    for graph in (torch.export.export(Packed(), (x,)).graph, traced.graph):
        assert [n for n in graph.nodes if n.target is unit]
    assert torch.equal(traced(x), expected)
    assert torch.equal(torch.compile(Packed(), backend="eager", fullgraph=True)(x), expected)


def test_layout_refuses_what_no_convolution_has() -> None:
    with pytest.raises(BinarizeError) as caught:
        pack_weight(torch.ones(2, 3), stride=(1,), dilation=(1,))
    assert str(caught.value) == (
        "signs=(2, 3): the kernels take convolutions in one to three dimensions; "
        "view a linear weight as (C_out, C_in, 1, 1)"
    )
    with pytest.raises(BinarizeError) as caught:
        pack_weight(torch.ones(4, 3, 1), stride=(1,), dilation=(1,), groups=3)
    assert str(caught.value) == (
        "groups=3: 4 channels are not divisible by it; give the groups of the convolution"
    )
    layout = Layout(1, 1, (1,), (1,), (1,), 1, False)
    with pytest.raises(BinarizeError) as caught:
        unpack_weight(torch.zeros(3, dtype=torch.uint8), layout, (1,), False)
    assert "packed weight has 96 bytes of uint8" in str(caught.value)


@pytest.mark.parametrize("name", ["3x3", "stride 2", "grouped", "depthwise", "up", "1-D"])
def test_opcheck(name: str) -> None:
    layer, x = build(name)
    values = arguments(layer, want_means=True)
    torch.library.opcheck(unit, ([x], [1]), values)
