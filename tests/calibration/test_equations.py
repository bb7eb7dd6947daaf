"""The normal equations: rows that give each layer's sums, and weights solved from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from binarize import nn as bnn
from binarize.calibration.equations import Equations, as_columns, as_weight, input_rows
from binarize.nn.spec import UnitSpec

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "plain": (lambda u: bnn.BiConv2d(4, 6, 3, padding=1, unit=u), (2, 4, 5, 7)),
    "strided, dilated": (
        lambda u: bnn.BiConv2d(4, 6, (3, 2), stride=2, padding=(2, 0), dilation=(2, 1), unit=u),
        (2, 4, 9, 8),
    ),
    "groups": (lambda u: bnn.BiConv2d(4, 6, 3, padding=1, groups=2, unit=u), (2, 4, 5, 6)),
    "depthwise": (lambda u: bnn.BiConv2d(4, 4, 3, groups=4, unit=u), (2, 4, 5, 6)),
    "same": (lambda u: bnn.BiConv2d(4, 4, 3, padding="same", unit=u), (1, 4, 5, 6)),
    "valid": (lambda u: bnn.BiConv2d(4, 4, 3, padding="valid", unit=u), (1, 4, 5, 6)),
    "SAME": (lambda u: bnn.BiConv2d(4, 6, 3, stride=2, pre_padding="same", unit=u), (2, 4, 6, 5)),
    "asymmetric": (
        lambda u: bnn.BiConv2d(4, 6, 3, pre_padding=(0, 1, 2, 0), unit=u),
        (2, 4, 6, 5),
    ),
    "circular": (
        lambda u: bnn.BiConv2d(4, 6, 3, padding=1, padding_mode="circular", unit=u),
        (2, 4, 6, 5),
    ),
    "transposed": (
        lambda u: bnn.BiConvTranspose2d(
            4, 6, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2), groups=2, unit=u
        ),
        (2, 4, 4, 5),
    ),
    "transposed, dilated": (
        lambda u: bnn.BiConvTranspose2d(4, 6, 3, stride=1, padding=3, dilation=2, unit=u),
        (2, 4, 6, 5),
    ),
    "one dimension": (lambda u: bnn.BiConv1d(4, 6, 3, unit=u), (2, 4, 9)),
    "three dimensions": (lambda u: bnn.BiConv3d(4, 6, (1, 3, 2), unit=u), (2, 4, 3, 5, 4)),
    "linear": (lambda u: bnn.BiLinear(4, 6, unit=u), (2, 5, 4)),
}


def sums(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """What enters the norm of a layer, (P, C)."""
    seen = []
    handle = layer.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    layer(x)
    handle.remove()
    y = seen[0]
    return (y if y.ndim == 2 else y.movedim(1, -1)).flatten(0, -2)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("transposed_scale", ["output-channel", "input-channel"])
def test_rows_times_columns_are_the_sums(name: str, transposed_scale: str, monkeypatch) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    unit = UnitSpec(bypass=None, transposed_scale=transposed_scale)
    layer = make(unit).double().eval()
    x = torch.randn(*shape, dtype=torch.float64)
    with torch.no_grad():
        expected = sums(layer, x)
        weight = layer.quantizer(layer.weight)
        columns = as_columns(layer, weight)
        assert torch.equal(as_weight(layer, columns), weight)
        size = layer(x).shape[2:]
        # One sample at a time, too.
        for chunk in (2**24, 1):
            monkeypatch.setattr("binarize.calibration.equations._CHUNK", chunk)
            parts = list(input_rows(layer, layer.binarizer(x), size))
            found = torch.cat([(rows @ columns).transpose(0, 1).flatten(1) for _, rows in parts])
            assert torch.allclose(found, expected, atol=1e-12)
            assert len(parts) == (len(x) if chunk == 1 and name != "linear" else 1)


def equations(rows: torch.Tensor, values: torch.Tensor, like: torch.Tensor) -> Equations:
    made = Equations(like)
    for part in torch.arange(rows.shape[1]).tensor_split(3):
        made.add(rows[:, part], values[:, part])
    made.finish()
    return made


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("positions", [40, 20, 5])
def test_the_solution_minimizes_what_is_promised(groups: int, positions: int) -> None:
    """It is torch's least squares with an intercept, and with rows that draw to the start.

    With fewer rows than the 20 inputs, they are solved in another way.
    """
    torch.manual_seed(1)
    rows = torch.randn(groups, positions, 20, dtype=torch.float64) + 2
    values = torch.randn(groups, positions, 2, dtype=torch.float64) - 3
    start = torch.randn(groups, 20, 2, dtype=torch.float64)
    solved = equations(rows, values, start)
    centred, wanted = rows - rows.mean(1, keepdim=True), values - values.mean(1, keepdim=True)
    reach = centred @ start
    factor = (reach * wanted).sum(1) / (reach * reach).sum(1)
    strength = 0.3 * (centred * centred).sum(1).mean(1)
    more = strength.sqrt()[:, None, None] * torch.eye(20, dtype=torch.float64)
    expected = torch.linalg.lstsq(
        torch.cat([centred, more], 1), torch.cat([wanted, more @ (start * factor[:, None])], 1)
    ).solution
    assert torch.allclose(solved.solve(start, 0.3), expected)
    # Solved twice, and moments in between: nothing is used up.
    mean, variance, value, both = solved.moments(start)
    sums = rows @ start
    assert torch.allclose(mean, sums.mean(1).flatten())
    assert torch.allclose(variance, sums.var(1, correction=0).flatten())
    assert torch.allclose(value, values.mean(1).flatten())
    assert torch.allclose(both, (reach * wanted).mean(1).flatten())
    assert torch.allclose(solved.solve(start, 0.3), expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("positions", [60, 12, 4])
def test_signs_fit_better_than_rounded_ones_and_no_flip_helps(groups: int, positions: int) -> None:
    """Against the objective itself, written out, for correlated inputs."""
    torch.manual_seed(3)
    mix = torch.randn(10, 10, dtype=torch.float64)
    rows = torch.randn(groups, positions, 10, dtype=torch.float64) @ mix
    values = torch.randn(groups, positions, 3, dtype=torch.float64)
    start = torch.randn(groups, 10, 3, dtype=torch.float64)
    solved = equations(rows, values, start)
    rounded = torch.sign(solved.solve(start, 0.2))
    found = solved.signs(rounded, start, 0.2)
    assert set(found.flatten().tolist()) <= {-1.0, 1.0}
    centred, wanted = rows - rows.mean(1, keepdim=True), values - values.mean(1, keepdim=True)
    reach = centred @ start
    anchor = start * ((reach * wanted).sum(1) / (reach * reach).sum(1))[:, None]
    strength = 0.2 * (centred * centred).sum(1).mean(1)[:, None, None]

    def best_factor(signs: torch.Tensor) -> torch.Tensor:
        sums = centred @ signs
        over = (sums * wanted).sum(1, keepdim=True) + (strength * signs * anchor).sum(1, True)
        return over / ((sums * sums).sum(1, keepdim=True) + strength * signs.shape[1])

    def loss(signs: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        off = (centred @ (factor * signs) - wanted).square().sum(1)
        return off + (strength * (factor * signs - anchor).square()).sum(1)

    least = loss(found, best_factor(found))
    assert bool((least <= loss(rounded, best_factor(rounded)) + 1e-9).all())
    factor = best_factor(found)
    for i in range(10):
        other = found.clone()
        other[:, i] *= -1
        assert bool((least <= loss(other, factor) + 1e-9).all())
    # The factor is never negative: all signs turn instead.
    assert bool((factor > -1e-12).all())


def test_blocks_of_inputs_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(4)
    rows, values = torch.randn(1, 200, 30).double(), torch.randn(1, 200, 5).double()
    start = torch.randn(1, 30, 5).double()
    solved = equations(rows, values, start)
    whole = solved.signs(start, start, 0.1)
    monkeypatch.setattr("binarize.calibration.equations._BLOCK", 7)
    assert torch.equal(solved.signs(start, start, 0.1), whole)
    few = equations(rows[:, :20], values[:, :20], start)
    one = few.signs(start, start, 0.1)
    monkeypatch.setattr("binarize.calibration.equations._BLOCK", 64)
    assert torch.equal(few.signs(start, start, 0.1), one)


def test_signs_of_inputs_that_never_vary_stay() -> None:
    start = torch.randn(1, 4, 2, dtype=torch.float64)
    rows, values = torch.ones(1, 9, 4).double(), torch.randn(1, 9, 2).double()
    found = equations(rows, values, start).signs(start, start, 0.1)
    assert torch.equal(found, torch.sign(start))


def test_inputs_that_never_vary_leave_the_weight() -> None:
    start = torch.randn(1, 4, 2, dtype=torch.float64)
    rows, values = torch.ones(1, 9, 4).double(), torch.randn(1, 9, 2).double()
    assert torch.equal(equations(rows, values, start).solve(start, 0.1), 0 * start)


def test_half_precision_is_summed_in_single() -> None:
    rows, values = torch.ones(1, 5000, 1), torch.full((1, 5000, 1), 3.0)
    made = equations(rows.half(), values.half(), torch.zeros(1, 1, 1).half())
    mean, _, value, _ = made.moments(torch.ones(1, 1, 1))
    assert mean.item() == 1
    assert value.item() == 3


def test_a_linear_layer_has_no_kernel() -> None:
    layer = nn.Linear(3, 2)
    assert torch.equal(as_weight(layer, as_columns(layer, layer.weight)), layer.weight)
