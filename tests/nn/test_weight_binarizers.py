"""Weight binarizers of other methods against their equations, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from binarize.errors import BinarizeError
from binarize.nn import BiConv1d, BiConv2d, BiConvTranspose2d, BiLinear, BinaryLayer, UnitSpec
from binarize.nn.parts import WEIGHTS
from binarize.nn.weight_binarizers import (
    AdaptiveSetWeight,
    BalancedSign,
    BinaryBases,
    BinaryCells,
    ChannelCentredSign,
    LayerCentredSign,
    LearnedLevelsWeight,
    SignWeight,
    TensorSign,
)

BELOW, ABOVE = math.nextafter(1.0, 0.0), math.nextafter(1.0, 2.0)
POINTS = [[0.0, -0.0, 0.5, -0.5, BELOW, 3.0], [1.0, -1.0, ABOVE, -ABOVE, 1e-9, -1e-9]]


def signs(x: Tensor) -> Tensor:
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def inside(x: Tensor) -> Tensor:
    return torch.where(x.abs() <= 1, 1.0, 0.0).to(x.dtype)


def decay(x: Tensor, done: float) -> Tensor:
    t = 10 ** (-3 + 4 * done)
    return max(1 / t, 1.0) * t * (1 - torch.tanh(t * x) ** 2)


def same(found: Tensor | None, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert found is not None
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=tolerance, atol=tolerance)


# Slices of a weight, and of the values that belong to its elements: one per output channel.
Slices = Callable[[Tensor], Iterator[Tensor]]


def rows(weight: Tensor) -> Iterator[Tensor]:
    """Of a convolution's or linear layer's weight (out, in, ...)."""
    yield from weight


def columns(weight: Tensor, groups: int) -> Iterator[Tensor]:
    """Of a transposed weight (in, out / groups, ...)."""
    for block in weight.chunk(groups):
        for column in range(weight.shape[1]):
            yield block[:, column]


LAYOUTS: dict[str, tuple[tuple[int, ...], int, int, Slices]] = {
    "linear": ((4, 6), 0, 1, rows),
    "convolution": ((4, 3, 3, 2), 0, 1, rows),
    "depthwise": ((4, 1, 3, 3), 0, 1, rows),
    "transposed": ((6, 4, 2, 2), 1, 1, lambda weight: columns(weight, 1)),
    "transposed grouped": ((6, 2, 3), 1, 2, lambda weight: columns(weight, 2)),
}


@pytest.fixture(params=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> tuple[tuple[int, ...], int, int, Slices]:
    return LAYOUTS[request.param]


def run(quantizer: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    quantizer.start(weight.detach())
    binary = quantizer(weight)
    torch.manual_seed(3)
    grad = torch.randn_like(binary)
    binary.backward(grad)
    return binary.detach(), grad


def test_bnn() -> None:
    weight = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    binary, grad = run(SignWeight(), weight)
    assert binary.tolist() == signs(weight.detach()).tolist()
    same(weight.grad, grad * inside(weight.detach()))


def test_dorefa() -> None:
    weight = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    binary, grad = run(TensorSign(), weight)
    same(binary, signs(weight.detach()) * weight.detach().abs().mean())
    same(weight.grad, grad)


def test_xnor(layout: tuple[tuple[int, ...], int, int, Slices]) -> None:
    shape, dim, groups, slices = layout
    weight = torch.randn(shape, dtype=torch.float64)
    weight.view(-1)[:4] = torch.tensor([3.0, -4.0, 0.0, 1.0])
    weight.requires_grad_()
    binary, grad = run(ChannelCentredSign(dim, groups), weight)
    assert weight.grad is not None
    parts = zip(*map(slices, (weight.detach(), binary, grad, weight.grad)), strict=True)
    for values, used, arriving, found in parts:
        # Dimension 0 of a slice is the input channel.
        centred = values - (values.mean(0, keepdim=True) if values.shape[0] > 1 else 0)
        scale = centred.clamp(-1, 1).abs().mean()
        same(used, scale * signs(centred))
        same(found, arriving * (1 / values.numel() + scale * inside(centred)))


@pytest.mark.parametrize("done", [0.0, 0.6, 1.0])
def test_irnet(layout: tuple[tuple[int, ...], int, int, Slices], done: float) -> None:
    shape, dim, groups, slices = layout
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    twin = weight.detach().clone().requires_grad_()
    quantizer = BalancedSign(dim, groups).double()
    quantizer.start(weight.detach())
    quantizer.set_progress(done)
    binary = quantizer(weight)
    grad = torch.randn_like(binary)
    binary.backward(grad)
    for values, used, arriving in zip(slices(twin), slices(binary), slices(grad), strict=True):
        standard = (values - values.mean()) / values.std()
        scale = 2 ** torch.round(torch.log2(standard.detach().abs().mean()))
        same(used.detach(), scale * signs(standard.detach()))
        # The estimator's gradient continues through the standardization.
        standard.backward(arriving * scale * decay(standard.detach(), done), retain_graph=True)
    same(weight.grad, twin.grad if twin.grad is not None else torch.zeros(0), 1e-8)


@pytest.mark.parametrize("done", [0.0, 0.6, 1.0])
def test_adabin(layout: tuple[tuple[int, ...], int, int, Slices], done: float) -> None:
    shape, dim, groups, slices = layout
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    twin = weight.detach().clone().requires_grad_()
    quantizer = AdaptiveSetWeight(dim, groups).double()
    quantizer.start(weight.detach())
    quantizer.set_progress(done)
    binary = quantizer(weight)
    grad = torch.randn_like(binary)
    binary.backward(grad)
    for values, used, arriving in zip(slices(twin), slices(binary), slices(grad), strict=True):
        beta, alpha = values.mean(), values.std(correction=0)
        u = (values - beta) / alpha
        expected = alpha * signs(u.detach()) + beta
        same(used.detach(), expected.detach(), 1e-8)
        assert len(used.detach().unique()) <= 2
        (arriving * expected).sum().backward(retain_graph=True)
        u.backward(arriving * alpha.detach() * decay(u.detach(), done), retain_graph=True)
    same(weight.grad, twin.grad if twin.grad is not None else torch.zeros(0), 1e-8)


def test_bit() -> None:
    weight = torch.randn(4, 3, 3, dtype=torch.float64, requires_grad=True)
    binary, grad = run(LayerCentredSign(), weight)
    values = weight.detach()
    same(binary, values.abs().mean() * signs(values - values.mean()))
    same(weight.grad, grad)


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_lqnet(layout: tuple[tuple[int, ...], int, int, Slices], bits: int) -> None:
    shape, dim, groups, slices = layout
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    quantizer = LearnedLevelsWeight(dim, groups, bits=bits)
    quantizer.start(weight.detach())
    bases = quantizer.basis.clone()
    binary = quantizer(weight)
    grad = torch.randn_like(binary)
    binary.backward(grad)
    same(weight.grad, grad)
    codes = torch.tensor(
        [[1.0 if n >> i & 1 else -1.0 for i in range(bits)] for n in range(2**bits)]
    ).double()
    parts = zip(
        slices(weight.detach()), slices(binary.detach()), bases, quantizer.basis, strict=True
    )
    for values, used, old, new in parts:
        distances = (values.reshape(-1, 1) - codes @ old).abs()
        chosen = distances.argmin(1)
        same(used.reshape(-1), (codes @ old)[chosen])
        # Least squares with a pull to the old basis of 1e-4.
        b, x = codes[chosen], values.reshape(-1, 1)
        gram = b.T @ b / len(x) + 1e-4 * torch.eye(bits, dtype=torch.float64)
        fresh = torch.linalg.solve(gram, (b.T @ x)[:, 0] / len(x) + 1e-4 * old)
        same(new, 0.9 * old + 0.1 * fresh)


@pytest.mark.parametrize("bases", [1, 2, 5])
def test_groupnet(layout: tuple[tuple[int, ...], int, int, Slices], bases: int) -> None:
    shape, dim, groups, slices = layout
    start = torch.randn(shape, dtype=torch.float64)
    quantizer = BinaryBases(dim, groups, bases=bases).double()
    stacked = quantizer.latent(start)
    left = start
    for branch in stacked.unflatten(0, (bases, -1)):
        same(branch, left)
        binary = torch.empty_like(left)
        for values, slot in zip(slices(left), slices(binary), strict=True):
            slot.copy_(values.abs().mean() * signs(values))
        left = left - binary
    with torch.no_grad():
        quantizer.mix.copy_(torch.rand(bases) + 0.5)
    stacked.requires_grad_()
    used = quantizer(stacked)
    grad = torch.randn_like(used)
    used.backward(grad)
    expected = torch.zeros_like(start)
    branches = stacked.detach().unflatten(0, (bases, -1))
    for i, branch in enumerate(branches):
        binary = torch.empty_like(branch)
        for values, slot in zip(slices(branch), slices(binary), strict=True):
            slot.copy_(values.abs().mean() * signs(values))
        expected += quantizer.mix.detach()[i] * binary
        assert quantizer.mix.grad is not None
        same(quantizer.mix.grad[i], (grad * binary).sum())
    same(used.detach(), expected)
    mix = quantizer.mix.detach().view(-1, *[1] * start.dim())
    same(stacked.grad, (mix * grad * inside(branches)).flatten(0, 1))


@pytest.mark.parametrize("cells", [1, 2, 3])
def test_cbnn(layout: tuple[tuple[int, ...], int, int, Slices], cells: int) -> None:
    """Cells with lateral connections between them, whose outputs are added."""
    shape, dim, groups, slices = layout
    start = torch.randn(shape, dtype=torch.float64)
    start.view(-1)[:2] = torch.tensor([0.0, -0.0])
    quantizer = BinaryCells(dim, groups, cells=cells).double()
    stacked = quantizer.latent(start)
    quantizer.start(stacked)
    count = len(list(slices(start)))
    assert quantizer.mix.tolist() == [[1.0] * count] * cells
    branches = stacked.detach().unflatten(0, (cells, -1))
    same(branches[0], start)
    assert len({str(branch.tolist()) for branch in branches}) == cells
    # w[j][i] is what cell i gets of cell j, a number for each channel.
    lateral = torch.rand(cells, cells, count, dtype=torch.float64)
    lateral[range(cells), range(cells)] = 0
    with torch.no_grad():
        quantizer.mix.copy_(1 + lateral.sum(1))
    stacked.requires_grad_()
    used = quantizer(stacked)
    grad = torch.randn_like(used)
    used.backward(grad)
    binary = torch.empty_like(branches)
    for branch, slot in zip(branches, binary, strict=True):
        for values, one in zip(slices(branch), slices(slot), strict=True):
            one.copy_(values.abs().mean() * signs(values))
    expected, factor = torch.zeros_like(start), torch.empty_like(binary)
    for i in range(cells):
        cell = binary[i].clone()
        for j in range(cells):
            for channel, (own, other) in enumerate(
                zip(slices(cell), slices(binary[j]), strict=True)
            ):
                own += lateral[j, i, channel] * other
        expected += cell
        for channel, one in enumerate(slices(factor[i])):
            one.fill_(float(1 + lateral[i, :, channel].sum()))
    same(used.detach(), expected)
    same(stacked.grad, (factor * grad * inside(branches)).flatten(0, 1))
    assert quantizer.mix.grad is not None
    for i in range(cells):
        arriving = [(a * b).sum() for a, b in zip(slices(grad), slices(binary[i]), strict=True)]
        same(quantizer.mix.grad[i], torch.stack(arriving))


@pytest.mark.parametrize("kind", ["convolution", "transposed grouped"])
@pytest.mark.parametrize("name", sorted(WEIGHTS))
def test_zero_counts_as_positive_also_where_weights_are_centred(name: str, kind: str) -> None:
    """Every mean that a method takes off is 0 here, so that a weight of 0 lies on its centre."""
    _, dim, groups, slices = LAYOUTS[kind]
    values = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=torch.float64)
    shape = (4, 5, 1) if dim == 0 else (10, 2, 1)
    weight = torch.empty(shape, dtype=torch.float64)
    for values_of_slice in slices(weight):
        values_of_slice.copy_(values.view(values_of_slice.shape))
    quantizer = WEIGHTS[name](dim, groups).double()
    latent = quantizer.latent(weight)
    quantizer.start(latent)
    if quantizer.copies > 1:  # the first of several
        quantizer, latent = quantizer.single, weight
    for used in slices(quantizer(latent).detach()):
        high = used.max().item()
        assert high > 0
        assert used.flatten().tolist() == pytest.approx([-high, -high, high, high, high])


SPECS = {name: UnitSpec(weight=name) for name in sorted(WEIGHTS)}
SPECS["three bits"] = UnitSpec(weight="learned-levels", weight_options={"bits": 3})
SPECS["two bases"] = UnitSpec(weight="binary-bases", weight_options={"bases": 2})


def layers(spec: UnitSpec) -> dict[str, BinaryLayer]:
    return {
        "dense": BiConv2d(5, 6, 3, unit=spec),
        "grouped": BiConv2d(6, 4, (1, 3), groups=2, unit=spec),
        "depthwise": BiConv1d(3, 3, 3, groups=3, unit=spec),
        "depthwise pointwise": BiConv2d(3, 3, 1, groups=3, unit=spec),
        "transposed": BiConvTranspose2d(4, 6, 2, stride=2, groups=2, unit=spec),
        "linear": BiLinear(7, 3, unit=spec),
    }


@pytest.mark.parametrize("name", list(SPECS))
def test_bits_give_back_the_weight_in_use_to_the_last_bit(name: str) -> None:
    for kind, layer in layers(SPECS[name]).items():
        layer.train()
        quantizer = layer.quantizer
        for _ in range(2):  # statistics that have moved away from their start
            quantizer(layer.weight)
            with torch.no_grad():
                layer.weight.add_(torch.randn_like(layer.weight) * 0.1)
        layer.eval()
        used = quantizer(layer.weight).detach()
        bits, scale = layer.packed_weight()
        assert (bits.numel(), scale.numel()) == quantizer.packed_sizes(layer.weight), kind
        assert bits.numel() == math.ceil(layer.weights * layer.weight_bits / 8), kind
        with torch.no_grad():
            layer.weight.zero_()
        layer.load_packed_weight(bits, scale)
        assert torch.equal(quantizer(layer.weight), used), kind
        again = layer.packed_weight()
        assert torch.equal(again[0], bits), kind
        assert torch.equal(again[1], scale), kind
        if quantizer.popcount_exact:
            ones, factor = layer.binary_weight()
            assert torch.equal(ones.abs(), torch.ones_like(used)), kind
            assert torch.equal(ones * factor, used), kind
            expected = quantizer.spread(quantizer.scale(layer.weight), layer.weight)
            assert torch.equal(factor, expected), kind
        else:
            with pytest.raises(BinarizeError, match="are not signs times one scale"):
                layer.binary_weight()


@pytest.mark.parametrize("name", list(SPECS))
def test_training_goes_on_from_bits_where_it_stopped(name: str) -> None:
    """The statistics of what was loaded are those of what was stored."""
    layer = BiConv2d(8, 6, 3, unit=SPECS[name]).double()
    layer.train()
    layer.quantizer(layer.weight)
    used = layer.quantizer(layer.weight).detach()
    layer.load_packed_weight(*layer.packed_weight())
    again = layer.quantizer(layer.weight).detach()
    if name in ("balanced-sign", "channel-centred-sign"):
        # Their scale depends on the shape of the distribution, which bits do not have.
        assert torch.equal(signs(again), signs(used))
    else:
        torch.testing.assert_close(again, used, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", list(SPECS))
def test_weights_that_all_agree_stay_finite(name: str) -> None:
    for value in (0.0, 0.1, -0.1):
        layer = BiConv2d(4, 3, 3, unit=SPECS[name])
        layer.set_weight(torch.nn.Parameter(torch.full((3, 4, 3, 3), value)))
        used = layer.quantizer(layer.weight)
        used.sum().backward()
        assert layer.weight.grad is not None
        assert bool(layer.weight.grad.isfinite().all())
        assert bool(used.isfinite().all())
        layer.eval()
        used = layer.quantizer(layer.weight).detach()
        layer.load_packed_weight(*layer.packed_weight())
        assert torch.equal(layer.quantizer(layer.weight), used)


@pytest.mark.parametrize("name", list(SPECS))
def test_a_layer_learns_in_eval_mode_too(name: str) -> None:
    for kind, layer in layers(SPECS[name]).items():
        layer.eval()
        x = torch.randn(2, 5, 7) if kind == "linear" else torch.randn(2, layer_width(layer), 6, 6)
        layer(x[:, :, 0] if isinstance(layer, BiConv1d) else x).square().sum().backward()
        assert layer.weight.grad is not None, kind
        assert bool(layer.weight.grad.isfinite().all()), kind


def layer_width(layer: Any) -> int:
    return int(layer.in_channels)


def test_state_moves_by_the_state_dict() -> None:
    for name, spec in SPECS.items():
        first, second = BiConv2d(4, 6, 3, unit=spec), BiConv2d(4, 6, 3, unit=spec)
        for _ in range(3):
            first.quantizer(first.weight)
        second.load_state_dict(first.state_dict())
        first.eval()
        second.eval()
        assert torch.equal(first.quantizer(first.weight), second.quantizer(second.weight)), name


def test_bits_and_copies_are_counted() -> None:
    group = BiConv2d(4, 6, 3, unit=SPECS["binary-bases"])
    assert (group.weights, group.weight_bits, group.activation_bits) == (216, 5, 1)
    cells = BiConv2d(4, 6, 3, unit=SPECS["binary-cells"])
    assert (cells.weights, cells.weight_bits, cells.activation_bits) == (216, 2, 1)
    # A factor for each cell and channel, the norm, the binarizer.
    floats = sum(p.numel() for p in cells.parameters()) - cells.weight.numel()
    assert floats == 2 * 6 + 2 * 6 + sum(p.numel() for p in cells.binarizer.parameters())
    both = UnitSpec(
        binarizer="learned-levels",
        binarizer_options={"bits": 2},
        weight="learned-levels",
        weight_options={"bits": 3},
    )
    lq = BiConv2d(4, 6, 3, unit=both)
    assert (lq.weights, lq.weight_bits, lq.activation_bits) == (216, 3, 2)
    assert not lq.popcount_exact
    assert not group.popcount_exact
    assert BiConv2d(4, 6, 3, unit=SPECS["sign"]).popcount_exact


@pytest.mark.parametrize(
    ("cls", "options", "said"),
    [
        (LearnedLevelsWeight, {"bits": 9}, "must be a whole number from 1 to 8"),
        (BinaryBases, {"bases": 0}, "must be a whole number from 1 to 16"),
        (BinaryBases, {"bases": True}, "must be a whole number from 1 to 16"),
        (BinaryCells, {"cells": 17}, "cells=17: must be a whole number from 1 to 16"),
    ],
)
def test_wrong_options_are_refused(cls: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BinarizeError, match=said):
        cls(**options)
