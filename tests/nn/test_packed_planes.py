"""Packed layers with several planes against the binarizers' equations in plain torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize.nn import (
    BiConv1d,
    BiConv2d,
    BiConv3d,
    BiConvTranspose2d,
    BiLinear,
    UnitSpec,
)
from binarize.nn.packed import PackedUnit, StoredWeight, pack_layer
from binarize.nn.packed_planes import parity
from binarize.nn.weight_binarizers import SignWeight

# Class, positional arguments, keywords, input shape.
LAYERS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "3x3": (BiConv2d, (5, 7, 3), {"padding": 1}, (2, 5, 9, 8)),
    "many channels": (BiConv2d, (70, 24, 3), {"padding": 1}, (1, 70, 7, 6)),
    "no padding": (BiConv2d, (5, 7, 3), {"dilation": 2, "stride": 2}, (2, 5, 9, 8)),
    "padded too much": (BiConv2d, (6, 9, 3), {"padding": 3, "stride": 2}, (2, 6, 4, 5)),
    "reflected": (BiConv2d, (6, 4, 3), {"padding": 1, "padding_mode": "reflect"}, (2, 6, 5, 6)),
    "grouped": (BiConv2d, (6, 4, 3), {"padding": 1, "groups": 2}, (2, 6, 5, 6)),
    "depthwise": (BiConv2d, (9, 9, 5), {"groups": 9, "padding": 2}, (1, 9, 6, 5)),
    "SAME": (BiConv2d, (6, 8, 3), {"pre_padding": "same", "stride": 2}, (2, 6, 9, 10)),
    "asymmetric": (BiConv2d, (6, 8, 3), {"pre_padding": (1, 2, 0, 1)}, (2, 6, 7, 8)),
    "asymmetric, reflects nothing": (
        BiConv2d,
        (6, 8, 3),
        {"pre_padding": (1, 2, 0, 1), "padding": "valid", "padding_mode": "reflect"},
        (2, 6, 7, 8),
    ),
    "1-D": (BiConv1d, (6, 9, 5), {"stride": 2, "padding": 2}, (2, 6, 13)),
    "3-D": (BiConv3d, (6, 4, 3), {"stride": (1, 2, 1), "padding": (0, 1, 2)}, (1, 6, 3, 5, 4)),
    "up": (
        BiConvTranspose2d,
        (6, 9, 3),
        {"stride": (2, 3), "padding": 1, "output_padding": (1, 2), "groups": 3},
        (2, 6, 4, 5),
    ),
    "linear": (BiLinear, (9, 6), {}, (2, 4, 5, 9)),
    "no sample": (BiConv2d, (6, 4, 3), {"padding": 1}, (0, 6, 4, 4)),
}
SPECS = {
    "groupnet": UnitSpec(binarizer="sign", weight="binary-bases", weight_options={"bases": 5}),
    "cbnn": UnitSpec(binarizer="shifted-sign", weight="binary-cells", weight_options={"cells": 2}),
    "one cell": UnitSpec(binarizer="sign", weight="binary-cells", weight_options={"cells": 1}),
    "lqnet": UnitSpec(
        binarizer="learned-levels",
        binarizer_options={"bits": 3},
        weight="learned-levels",
        weight_options={"bits": 3},
    ),
    "adabin": UnitSpec(binarizer="adaptive-set", weight="adaptive-set"),
    "adaptive activations": UnitSpec(binarizer="adaptive-set", weight="sign"),
    "adaptive weights": UnitSpec(binarizer="sign", weight="adaptive-set"),
    "levels and sets": UnitSpec(
        binarizer="learned-levels", binarizer_options={"bits": 2}, weight="adaptive-set"
    ),
}
# Planes, the sums over signs of activations alone included.
COUNTS = {
    "groupnet": 5,
    "cbnn": 2,
    "one cell": 1,
    "lqnet": 9,
    "adabin": 2,
    "adaptive activations": 1,
    "adaptive weights": 2,
    "levels and sets": 4,
}


def sign(x: Tensor) -> Tensor:
    return torch.where(x < 0, -1.0, 1.0).double()


def nearest(values: Tensor, basis: Tensor) -> Tensor:
    """LQ-Nets, Eq. 2: the nearest of all sums of plus or minus the basis; ties go up."""
    codes = itertools.product([-1.0, 1.0], repeat=len(basis))
    levels = torch.stack([(torch.tensor(code).double() * basis).sum() for code in codes])
    levels = levels.sort(descending=True).values
    return levels[(values[..., None] - levels).abs().argmin(-1)]


def activations(binarizer: Any, x: Tensor) -> Tensor:
    """The equations of the binarizers' docstrings, in double precision."""
    x = x.double()
    name = type(binarizer).__name__
    if name == "ShiftedSign":
        return sign(x + binarizer.along_channels(binarizer.b, x))
    if name == "AdaptiveSet":
        alpha, beta = binarizer.alpha.double(), binarizer.beta.double()
        return alpha * sign((x - beta) / alpha) + beta
    if name == "LearnedLevels":
        return nearest(x, binarizer.basis.double())
    assert name == "Sign"
    return sign(x)


def slices(weight: Tensor, layer: Any) -> list[tuple[Any, Tensor]]:
    """The weights of each output channel, and where they are."""
    if not getattr(layer, "transposed", False):
        return [((o,), weight[o]) for o in range(len(weight))]
    rows = len(weight) // layer.groups
    return [
        ((slice(g * rows, (g + 1) * rows), o), weight[g * rows : (g + 1) * rows, o])
        for g in range(layer.groups)
        for o in range(weight.shape[1])
    ]


def weights(layer: Any) -> Tensor:
    """The equations of the weight binarizers' docstrings, in double precision."""
    quantizer, weight = layer.quantizer, layer.weight.detach().double()
    name = type(quantizer).__name__
    if name in ("BinaryBases", "BinaryCells"):
        parts = weight.unflatten(0, (quantizer.bits, -1))
        total = torch.zeros_like(parts[0])
        for part, mix in zip(parts, quantizer.mix.double(), strict=True):
            for i, (where, own) in enumerate(slices(part, layer)):
                factor = mix if name == "BinaryBases" else mix[i]
                total[where] += factor * own.abs().mean() * sign(own)
        return total
    if name == "SignWeight":
        return sign(weight)
    made = torch.empty_like(weight)
    for i, (where, own) in enumerate(slices(weight, layer)):
        if name == "AdaptiveSetWeight":
            alpha, beta = quantizer.scales[i].double(), quantizer.offsets[i].double()
            made[where] = alpha * sign((own - beta) / alpha) + beta
        else:
            assert name == "LearnedLevelsWeight"
            made[where] = nearest(own, quantizer.basis[i].double())
    return made


def expected(layer: Any, x: Tensor) -> Tensor:
    """The layer in plain torch and double precision, without a bypass."""
    a, w = activations(layer.binarizer, x), weights(layer)
    norm = layer.norm
    if isinstance(layer, nn.Linear):
        y = F.linear(a, w).movedim(-1, 1)
    elif layer.transposed:
        how = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        y = F.conv_transpose2d(a, w, None, *how)
    else:
        before = layer.pre_padding or ()
        if before == "same":  # of stride 2 and kernel 3
            before = [p for n in reversed(x.shape[2:]) for p in ((0, 1) if n % 2 == 0 else (1, 1))]
        a = F.pad(a, list(before))
        around = layer._reversed_padding_repeated_twice
        a = F.pad(a, around, "constant" if layer.padding_mode == "zeros" else layer.padding_mode)
        conv: Callable[..., Tensor] = [F.conv1d, F.conv2d, F.conv3d][x.dim() - 3]
        y = conv(a, w, None, layer.stride, 0, layer.dilation, layer.groups)
    column = (-1, *[1] * (y.dim() - 2))
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    y = (y - norm.running_mean.double().view(column)) * gain.view(column)
    y = y + norm.bias.double().view(column)
    return y.movedim(1, -1) if isinstance(layer, nn.Linear) else y


@torch.no_grad()
def build(geometry: str, spec: str, **more: Any) -> tuple[Any, Tensor]:
    cls, arguments, keywords, shape = LAYERS[geometry]
    layer = cls(*arguments, **keywords, unit=SPECS[spec], **{"bypass": False, **more})
    scramble(layer)
    return layer.eval(), torch.randn(shape)


def scramble(layer: Any) -> None:
    """Learned numbers away from their starting values; of either sign where that can be."""
    for name, value in (*layer.binarizer.named_parameters(), *layer.quantizer.named_parameters()):
        value.uniform_(0.3, 1)
        if name in ("mix", "alpha"):
            value *= torch.where(torch.rand(value.shape) < 0.5, -1, 1)
    for part in (layer.binarizer, layer.quantizer):
        if "basis" in part._buffers:
            part.basis.normal_()
    if "offsets" in layer.quantizer._buffers:
        layer.quantizer.offsets.normal_(std=0.1)
    layer.norm.weight.uniform_(-1.5, 1.5)
    layer.norm.bias.normal_()
    layer.norm.running_mean.normal_()
    layer.norm.running_var.uniform_(0.5, 2)


def twin_of(layer: Any) -> Any:
    return pack_layer(layer, *layer.packed_weight())


@torch.no_grad()
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("geometry", LAYERS)
def test_agrees_with_the_equations(geometry: str, spec: str) -> None:
    layer, x = build(geometry, spec)
    twin = twin_of(layer)
    assert isinstance(twin, PackedUnit)
    assert twin.counts == COUNTS[spec]
    y = twin(x)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected(layer, x).float(), atol=5e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("geometry", ["3x3", "grouped", "up", "SAME", "linear"])
def test_sums_are_exact(geometry: str, spec: str) -> None:
    """Every factor is a power of two or a small sum of such, so that nothing is rounded."""
    layer, x = build(geometry, spec)
    norm, quantizer, binarizer = layer.norm, layer.quantizer, layer.binarizer
    norm.eps = 0.0
    norm.reset_running_stats()
    norm.weight.fill_(0.5)
    norm.bias.fill_(0.25)
    if hasattr(quantizer, "mix"):
        powers = 2.0 ** torch.arange(quantizer.bits)
        quantizer.mix.copy_(-powers.view(-1, *[1] * (quantizer.mix.dim() - 1)))
        layer.weight.copy_(sign(layer.weight) * 0.5)
    if hasattr(quantizer, "scales"):
        quantizer.scales.fill_(0.5)
        quantizer.offsets.fill_(-0.125)
    if hasattr(quantizer, "basis"):
        quantizer.basis.copy_(0.25 * 2.0 ** torch.arange(quantizer.bits))
    if hasattr(binarizer, "basis"):
        binarizer.basis.copy_(0.25 * 2.0 ** torch.arange(binarizer.bits))
    if hasattr(binarizer, "beta"):
        binarizer.alpha.fill_(-0.5)
        binarizer.beta.fill_(0.125)
    assert torch.equal(twin_of(layer)(x).double(), expected(layer, x))


@torch.no_grad()
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("inner", [None, "hardtanh"])
def test_bypass_and_inner_activation(spec: str, inner: str | None) -> None:
    parts = {**vars(SPECS[spec]), "inner": inner}
    for cls, stride, more in ((BiConv2d, 2, {"padding": 1}), (BiLinear, None, {})):
        steps = {} if stride is None else {"stride": stride}
        sizes = (6, 4, 3) if stride else (6, 4)
        layer = cls(*sizes, **steps, **more, unit=UnitSpec(**parts))
        scramble(layer)
        x = torch.randn((2, 6, 7, 8) if stride else (2, 7, 6))
        twin = twin_of(layer.eval())
        assert isinstance(twin, PackedUnit)
        y = expected(layer, x).float()
        y = y if inner is None else y.clamp(-1, 1)
        torch.testing.assert_close(twin(x), y + layer.bypass(x), atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_output_size_of_a_transposed_convolution() -> None:
    layer, x = build("up", "adabin")
    twin = twin_of(layer)
    smaller = twin(x, output_size=[7, 13])
    assert smaller.shape[2:] == (7, 13)
    torch.testing.assert_close(smaller, layer(x, output_size=[7, 13]), atol=5e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("spec", ["lqnet", "adabin"])
def test_other_types_in_and_out(spec: str, dtype: torch.dtype) -> None:
    layer, x = build("3x3", spec)
    x = x.to(dtype)
    y = twin_of(layer).to(dtype)(x)  # the kernel's numbers stay in float32
    assert y.dtype == dtype
    assert torch.equal(y, twin_of(layer)(x.float()).to(dtype))


def test_signs_change_at_thresholds() -> None:
    several = [-1.5, 0.25, 0.25, 2.0]
    x = torch.tensor([-torch.inf, -1.5, 0.0, 0.25, 2.0, torch.inf, torch.nan])
    x = torch.cat([x, torch.nextafter(torch.tensor(several), torch.tensor(-torch.inf))])
    below = torch.tensor([sum(float(v) < t for t in several) for v in x])
    assert torch.equal(parity(x, several), (below % 2 == 0).float())


@torch.no_grad()
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_bits_change_exactly_where_levels_do(bits: int) -> None:
    """For any basis, also in half precision: one pixel and one weight of 1 show the level."""
    for dtype, trial in itertools.product((torch.float32, torch.float16), range(5)):
        unit = UnitSpec(binarizer="learned-levels", binarizer_options={"bits": bits}, weight="sign")
        layer = BiConv2d(1, 1, 1, unit=unit, bypass=False).to(dtype)
        torch.manual_seed(trial)
        layer.binarizer.basis.normal_()
        layer.weight.fill_(1)
        layer.norm.eps = 0.0
        layer.eval()
        levels = layer.binarizer(torch.linspace(-9, 9, 9000, dtype=dtype)[None, None]).unique()
        middles = (levels[1:] + levels[:-1]) / 2
        infinity = torch.full_like(middles, math.inf)
        near = [torch.nextafter(middles, s * infinity) for s in (-1, 1)]
        x = torch.cat([middles, *near]).view(1, 1, 1, -1)
        chosen = layer.binarizer(x).float()
        torch.testing.assert_close(
            twin_of(layer)(x.float()), chosen, atol=2e-2 * (dtype != torch.float32) + 1e-5, rtol=0
        )


class Ternary(SignWeight):
    """Somebody's own weights, which their signs do not determine."""

    popcount_exact = False
    bits = 2


def test_says_why_it_does_not_count() -> None:
    def reason(layer: Any) -> str:
        twin = twin_of(layer.eval())
        assert isinstance(twin.quantizer, StoredWeight)
        return str(twin.quantizer.reason)

    many = UnitSpec(
        binarizer="learned-levels",
        binarizer_options={"bits": 4},
        weight="learned-levels",
        weight_options={"bits": 5},
    )
    text = "20 counts of bits would take longer than sums in floating point"
    assert reason(BiConv2d(4, 4, 3, unit=many)) == text
    ternary = BiConv2d(4, 4, 3)
    ternary.quantizer = Ternary()
    assert reason(ternary) == "its weights are not known as sums of signs times factors"
    inside = UnitSpec(weight="binary-bases", transposed_scale="input-channel")
    text = "the scale of its weights, one per input channel, is inside the channel sum"
    assert reason(BiConvTranspose2d(4, 4, 3, unit=inside)) == text
    resampled = BiConvTranspose2d(6, 9, 3)
    assert resampled.bypass is not None
    # Three equal numbers: no bit has one threshold only.
    equal = BiConvTranspose2d(6, 9, 3, unit=SPECS["lqnet"])
    with torch.no_grad():
        equal.binarizer.basis.copy_(torch.tensor([1.0, 1.0, 1.0]))
    assert reason(equal) == (
        "all bits of its activations have several thresholds, and its bypass is resampled"
    )
