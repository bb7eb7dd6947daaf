"""The sums of layers are whole numbers times one factor, and those that packed layers count."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from binarize.nn import (
    BiConv1d,
    BiConv2d,
    BiConv3d,
    BiConvTranspose1d,
    BiConvTranspose2d,
    BiConvTranspose3d,
    BiLinear,
    UnitSpec,
)
from binarize.nn.packed import PackedUnit, pack_layer
from binarize.nn.parts import BINARIZERS, WEIGHTS

# Layer, positional arguments, keywords, input shape: every kind of kernel geometry.
LAYERS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "plain": (BiConv2d, (37, 9, 3), {"padding": 1}, (2, 37, 7, 6)),
    "grouped": (BiConv2d, (36, 8, 3), {"groups": 4, "stride": 2}, (2, 36, 7, 6)),
    "SAME": (BiConv2d, (37, 9, 3), {"pre_padding": "same", "stride": 2}, (2, 37, 8, 6)),
    "asymmetric": (BiConv2d, (37, 9, 3), {"pre_padding": (1, 2, 0, 1)}, (2, 37, 7, 6)),
    "padding same": (BiConv2d, (37, 9, 4), {"padding": "same"}, (2, 37, 7, 6)),
    "reflected": (BiConv2d, (37, 9, 3), {"padding": 2, "padding_mode": "reflect"}, (2, 37, 7, 6)),
    # Zeros at the border are there when it is padded once more: no place to read the magnitude.
    "asymmetric and circular": (
        BiConv2d,
        (37, 9, 3),
        {"pre_padding": (1, 2, 0, 1), "padding": 1, "padding_mode": "circular"},
        (2, 37, 7, 6),
    ),
    "1-D": (BiConv1d, (37, 9, 5), {"padding": 2}, (2, 37, 12)),
    "3-D": (BiConv3d, (37, 9, 2), {}, (1, 37, 3, 5, 4)),
    "up": (BiConvTranspose2d, (37, 9, 4), {"stride": 2, "padding": 1}, (2, 37, 4, 5)),
    "up, grouped": (BiConvTranspose2d, (36, 8, 3), {"groups": 4}, (2, 36, 4, 5)),
    "up, 1-D": (BiConvTranspose1d, (37, 9, 2), {"stride": 2}, (2, 37, 6)),
    "up, 3-D": (BiConvTranspose3d, (37, 9, 2), {"stride": 2}, (1, 37, 2, 3, 2)),
    "linear": (BiLinear, (37, 9), {}, (2, 5, 6, 37)),
    "linear on rows": (BiLinear, (37, 9), {}, (3, 37)),
}


def made(name: str, spec: UnitSpec) -> tuple[Any, Tensor]:
    """A layer in eval mode whose norm does nothing, and an input."""
    kind, arguments, keywords, shape = LAYERS[name]
    layer = kind(*arguments, **keywords, unit=spec, bypass=False)
    with torch.no_grad():
        for parameter in layer.binarizer.parameters():
            parameter.uniform_(0.3, 1)
        layer(torch.randn(shape))  # what keeps statistics takes them when training
    layer.norm.reset_running_stats()
    layer.norm.eps = 0.0
    return layer.eval(), torch.randn(shape)


def summed(layer: Any, x: Tensor, *, signs_only: bool = False) -> Tensor:
    """What the layer's norm gets; with ``signs_only`` of signs, in double precision."""
    bare = copy.deepcopy(layer)
    bare.norm = torch.nn.Identity()
    if signs_only:
        for part in (bare.binarizer, bare.quantizer):
            part.register_forward_hook(lambda _module, _given, values: values.sign().double())
    y: Tensor = bare(x)
    return y


def factors(layer: Any, x: Tensor) -> Tensor:
    """The sample's magnitude times the output channel's."""
    samples = layer.binarizer(x).flatten(1)[:, 0].abs().view(-1, *[1] * (x.dim() - 1))
    shape = [1] * x.dim()
    shape[-1 if isinstance(layer, BiLinear) else 1] = -1
    return samples * layer.quantizer.scale(layer.weight).abs().view(shape)


@torch.no_grad()
def check(layer: Any, x: Tensor) -> None:
    counts = summed(layer, x, signs_only=True)
    assert torch.equal(counts, counts.round())
    factor = factors(layer, x)
    assert torch.equal(summed(layer, x), counts.float() * factor)
    twin = pack_layer(layer, *layer.packed_weight())
    if isinstance(twin, PackedUnit):
        assert torch.equal((twin(x) / factor).round(), counts.float())


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("binarizer", ["dab", "shifted-sign"])
def test_every_kind_of_layer(name: str, binarizer: str) -> None:
    layer, x = made(name, UnitSpec(binarizer=binarizer))
    check(layer, x)


@pytest.mark.parametrize("name", ["SAME", "up, grouped", "linear"])
@pytest.mark.parametrize("weight", WEIGHTS)
def test_every_weight_binarizer(weight: str, name: str) -> None:
    layer, x = made(name, UnitSpec(weight=weight))
    if layer.popcount_exact:
        check(layer, x)


@pytest.mark.parametrize("name", ["SAME", "up, grouped", "linear"])
@pytest.mark.parametrize("binarizer", BINARIZERS)
def test_every_activation_binarizer(binarizer: str, name: str) -> None:
    layer, x = made(name, UnitSpec(binarizer=binarizer))
    if layer.popcount_exact:
        check(layer, x)
