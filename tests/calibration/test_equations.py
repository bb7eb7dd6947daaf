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
