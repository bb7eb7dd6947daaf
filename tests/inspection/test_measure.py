"""binarize.inspect against closed forms: maps whose share of +1 is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import ModelError
from binarize.nn import BiConv1d, BiConv2d, BiConv3d, BiConvTranspose2d, BiLinear, UnitSpec
from binarize.nn.parts import BINARIZERS
from binarize.policy import load_policy

PLAIN = UnitSpec(binarizer="sign", bypass=None, activation=None)
QUARTER = 0.25 * 2 + 0.75 * math.log2(4 / 3)

# What each binarizer has learned, or keeps: its values for C channels.
VALUES: Mapping[str, Mapping[str, int]] = {
    "ablated-dab": {"k": 4, "b": 4, "a": 1},
    "adaptive-set": {"alpha": 1, "beta": 1},
    "annealed-sign": {"progress": 1},
    "dab": {"k": 4, "b": 4, "a": 1},
    "elastic-sign": {"alpha": 1, "b": 4},
    "learned-levels": {"basis": 1},
    "magnitude-sign": {},
    "redistributed-sign": {"k": 4, "b": 4, "beta": 1},
    "shifted-sign": {"b": 4},
    "sign": {},
}


def known_map(*shares: float, positions: int = 8) -> Tensor:
    """A sample (1, C, 1, positions) with these shares of positive numbers; 0 counts as one."""
    rows = [[0.0 if i < share * positions else -1.0 for i in range(positions)] for share in shares]
    return torch.tensor(rows)[None, :, None]


def test_known_shares() -> None:
    layer = BiConv2d(4, 4, 1, unit=PLAIN)
    made = binarize.inspect(layer, [known_map(0.5, 1.0, 0.25, 0.0)])
    (told,) = made.layers
    assert told.share == (0.5, 1.0, 0.25, 0.0)
    assert told.entropy == pytest.approx((1.0, 0.0, QUARTER, 0.0), abs=1e-15)
    assert told.pooled_entropy == told.entropy
    assert told.mean_entropy == pytest.approx((1 + QUARTER) / 4)
    assert told.map_entropy == pytest.approx([(1 + QUARTER) / 4])
    assert told.constant == 2
    assert (told.bits, told.calls, told.parameters) == (1, 1, {})
    assert (made.network, made.policy, made.batches) == ("BiConv2d", None, 1)


def test_a_threshold_that_follows_the_map_keeps_the_entropy() -> None:
    """A brighter picture: the fixed threshold loses everything, the mean of the map nothing."""
    bright = known_map(0.5, 0.5) + 10
    for binarizer, entropy in (("sign", 0.0), ("dab", 1.0)):
        layer = BiConv2d(2, 2, 1, unit=UnitSpec(binarizer=binarizer))
        assert binarize.inspect(layer, [bright]).layers[0].entropy == (entropy, entropy)


def test_entropy_is_of_one_map_and_pooled_entropy_of_all() -> None:
    layer = BiConv2d(1, 1, 1, unit=PLAIN)
    batch = torch.cat([known_map(1.0), known_map(0.0)])
    for batches in ([batch], [batch[:1], batch[1:]]):
        (told,) = binarize.inspect(layer, batches).layers
        assert (told.share, told.entropy, told.pooled_entropy) == ((0.5,), (0.0,), (1.0,))
        assert told.map_entropy == (0.0, 0.0)
        assert told.constant == 0


def units() -> dict[str, UnitSpec]:
    """A unit for each binarizer, those with options that matter, and each policy's."""
    specs = {name: UnitSpec(binarizer=name) for name in BINARIZERS}
    for bits in (2, 3):
        options = {"bits": bits}
        specs[f"{bits} bits"] = UnitSpec(binarizer="learned-levels", binarizer_options=options)
    specs["per channel"] = UnitSpec(binarizer="dab", binarizer_options={"scale": "channel"})
    for policy in binarize.policies():
        specs[f"policy {policy}"] = load_policy(policy).unit
    return specs


UNITS = units()


@pytest.mark.parametrize("name", UNITS)
def test_every_binarizer(name: str) -> None:
    layer = BiConv2d(4, 6, 3, padding=1, unit=UNITS[name])
    with torch.no_grad():
        for parameter in layer.binarizer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if UNITS[name].binarizer == "adaptive-set":
        nn.init.constant_(layer.binarizer.alpha, -0.5)  # the larger value is that of -1,
        nn.init.constant_(layer.binarizer.beta, 0.7)  # and both are positive
    x = torch.randn(3, 4, 20, 21)
    made = binarize.inspect(layer, [x])
    (told,) = made.layers
    with torch.no_grad():
        y = layer.eval().binarizer(x)
    # The levels in rising order; a scale per sample or channel moves them, but not their order.
    share, entropy = torch.zeros(4), torch.zeros(4)
    for c in range(4):
        for n in range(3):
            values, index = y[n, c].unique(return_inverse=True)
            assert len(values) == 2**told.bits, "this test needs all levels"
            counts = index.flatten().bincount().double() / y[n, c].numel()
            share[c] += counts[len(values) // 2 :].sum() / 3
            entropy[c] += -(counts * counts.log2()).sum() / 3
    assert told.share == pytest.approx(share.tolist(), abs=1e-6)
    assert told.entropy == pytest.approx(entropy.tolist(), abs=1e-6)
    if name in VALUES:
        assert {n: len(values) for n, values in told.parameters.items()} == VALUES[name]
    state = layer.binarizer.state_dict()
    for n, values in told.parameters.items():
        assert list(values) == pytest.approx(state[n].flatten().tolist())


def test_every_binarizer_is_expected_to_have_certain_values() -> None:
    assert set(VALUES) == set(BINARIZERS)


def test_a_scale_that_vanishes_hides_nothing() -> None:
    layer = BiConv2d(1, 1, 1, unit=UnitSpec(binarizer="dab"))
    nn.init.constant_(layer.binarizer.a, 1e4)
    made = binarize.inspect(layer, [known_map(0.5) * 0.1])
    assert made.maps[0].after.abs().max() == 0
    assert made.layers[0].share == (0.5,)


SHAPES: list[tuple[Any, tuple[int, ...], tuple[int, ...]]] = [
    (BiConv1d(3, 4, 3), (2, 3, 7), (7,)),
    (BiConv2d(3, 4, 3, stride=2), (2, 3, 7, 5), (7, 5)),
    (BiConv3d(3, 4, 1), (2, 3, 3, 5, 7), (3, 5, 7)),
    (BiConvTranspose2d(3, 4, 2, stride=2), (2, 3, 5, 3), (5, 3)),
    (BiLinear(3, 4), (2, 3), (3,)),
    (BiLinear(3, 4), (2, 5, 3), (5,)),
    (BiLinear(3, 4), (2, 5, 7, 3), (5, 7)),
    (BiConv2d(3, 4, 1).double(), (1, 3, 1, 1), (1, 1)),
    (BiConv2d(3, 4, 1).bfloat16(), (1, 3, 9, 1), (9, 1)),
]


@pytest.mark.parametrize(("layer", "shape", "kept"), SHAPES)
def test_every_kind_of_layer(layer: Any, shape: tuple[int, ...], kept: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=layer.weight.dtype)
    made = binarize.inspect(layer, [x])
    (told,) = made.layers
    assert len(told.share) == len(told.entropy) == len(told.pooled_entropy) == 3
    assert len(told.map_entropy) == len(made.maps) == shape[0]
    channel_dim = layer.binarizer.channel_dim
    for sample, shown in enumerate(made.maps):
        assert (shown.batch, shown.sample) == (0, sample)
        assert shown.before.shape == shown.after.shape == kept
        own = x[sample].float()
        mean = own if own.dim() == 1 else own.mean(channel_dim - (channel_dim > 0))
        torch.testing.assert_close(shown.before, mean)


def test_single_positions_tell_by_their_pooled_entropy() -> None:
    layer = BiLinear(2, 2, unit=PLAIN)
    (told,) = binarize.inspect(layer, [torch.tensor([[1.0, 1.0], [-1.0, 1.0]])]).layers
    assert told.entropy == (0.0, 0.0)
    assert told.pooled_entropy == (1.0, 0.0)
    assert binarize.inspect(BiLinear(2, 2), [torch.ones(2)]).layers[0].calls == 1


class Shared(nn.Module):
    """Defined in another order than it runs; one layer runs twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = BiConv2d(2, 2, 1, unit=PLAIN)
        self.late = BiConv2d(2, 2, 1)
        self.head = BiConv2d(2, 2, 1, unit=PLAIN)
        self.alias = self.head

    def forward(self, x: Tensor) -> Tensor:
        small = self.head(x[..., :4])
        return self.late(self.alias(x)) + small.mean()


def test_shared_idle_and_reordered_layers() -> None:
    x = known_map(0.5, 1.0)  # of its first four positions all are +1
    made = binarize.inspect(Shared(), [x, x, x], maps=2)
    assert [told.name for told in made.layers] == ["head", "late", "idle"]
    head, late, idle = made.layers
    assert (head.calls, late.calls, idle.calls) == (6, 3, 0)
    assert head.map_entropy == (0.0, 0.5) * 3
    assert head.entropy == (0.5, 0.0)
    assert head.share == pytest.approx((8 / 12, 1.0))
    assert made.maps_of == "head"
    assert [(kept.batch, kept.before.shape[-1]) for kept in made.maps] == [(0, 4), (1, 4)]
    assert (idle.share, idle.mean_entropy, idle.map_entropy) == ((), None, ())
    assert str(made).splitlines()[-1].split() == ["idle", "sign", "-", "-", "0", "-", "-"]


def test_feature_maps_of_another_layer() -> None:
    x = torch.randn(2, 2, 3, 5)
    net = nn.Sequential(BiConv2d(2, 3, 1, unit=PLAIN), BiConv2d(3, 2, 1, unit=PLAIN)).eval()
    made = binarize.inspect(net, [x], layer="1", maps=1)
    with torch.no_grad():
        inner = net[0](x)[0]
    assert made.maps_of == "1"
    (kept,) = made.maps
    torch.testing.assert_close(kept.before, inner.mean(0))
    torch.testing.assert_close(kept.after, torch.where(inner >= 0, 1.0, -1.0).mean(0))
    assert binarize.inspect(net, [x], maps=0).maps == ()


def test_the_network_is_left_as_it_was() -> None:
    unit = UnitSpec(binarizer="learned-levels")  # in training mode it follows the maps
    net = nn.Sequential(BiConv2d(2, 2, 1, unit=unit), BiConv2d(2, 2, 1)).train()
    net[1].norm.eval()
    modes = [module.training for module in net.modules()]
    before = {key: value.clone() for key, value in net.state_dict().items()}

    def unchanged() -> None:
        assert [module.training for module in net.modules()] == modes
        assert not any(module._forward_hooks for module in net.modules())
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert all(parameter.grad is None for parameter in net.parameters())

    binarize.inspect(net, [torch.randn(2, 2, 5, 5)])
    unchanged()
    with pytest.raises(ModelError, match="does not accept them"):
        binarize.inspect(net, [torch.randn(2, 2, 5, 5), torch.randn(2, 3, 5, 5)])
    unchanged()


def test_empty_maps_count_nothing() -> None:
    layer = BiConv2d(2, 2, 1)
    (told,) = binarize.inspect(layer, [torch.zeros(0, 2, 4, 4)]).layers
    assert (told.calls, told.share, told.mean_entropy) == (1, (), None)
    made = binarize.inspect(layer, [torch.zeros(0, 2, 4, 4), known_map(0.5, 0.5)])
    assert made.layers[0].share == (0.5, 0.5)
    assert [kept.batch for kept in made.maps] == [1]
    linear = BiLinear(2, 2)
    made = binarize.inspect(linear, [torch.zeros(3, 0, 2), torch.tensor([[[1.0, 1.0]]])])
    assert (made.layers[0].calls, made.layers[0].map_entropy) == (2, (0.0,))


def test_arguments_of_the_forward() -> None:
    layer = BiConv2d(2, 2, 1)
    x = known_map(0.5, 0.5)
    for batch in (x, (x,), [x], {"input": x}):
        assert binarize.inspect(layer, [batch]).layers[0].share == (0.5, 0.5)


def test_a_converted_network_tells_its_policy() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    student = binarize.convert(net, "xnor", example_inputs=torch.zeros(1, 3, 16, 16))
    made = binarize.inspect(student, [torch.randn(1, 3, 16, 16)])
    assert (made.network, made.policy) == ("Sequential", "xnor")
    assert [told.binarizer for told in made.layers] == ["magnitude-sign"]
    with pytest.raises(ModelError, match="PackedNetwork'?: a packed network does not store its"):
        binarize.inspect(binarize.pack(student.eval()), [torch.randn(1, 3, 16, 16)])


@pytest.mark.parametrize(
    ("model", "batches", "options", "text"),
    [
        (nn.Conv2d(1, 1, 1), [], {}, "model='Conv2d': it has no binary layer; convert it first"),
        ("net", [], {}, "model='str': not a torch.nn.Module"),
        (BiConv2d(1, 1, 1), [], {}, "batches=0: there is nothing to measure; give at least one"),
        (nn.Sequential(BiConv2d(1, 1, 1)), [torch.zeros(1, 1, 2, 2)], {"layer": "1"},
         "layer='1': no binary layer has that name; use one of 0"),
        (BiConv2d(1, 1, 1), [torch.zeros(1, 1, 2, 2)], {"maps": -1},
         "maps=-1: must not be negative"),
        (BiConv2d(1, 1, 1), [torch.zeros(1, 1, 2, 2, dtype=torch.uint8)], {},
         "a binary layer needs floating-point input"),
    ],
)  # fmt: skip
def test_mistakes(model: Any, batches: Any, options: Any, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        binarize.inspect(model, batches, **options)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
