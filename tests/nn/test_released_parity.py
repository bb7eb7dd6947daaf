"""`bidense-released` units give the numbers of the released layers, forward and backward."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

import binarize
from binarize.nn import BiConv2d, UnitSpec

GOLDEN = Path(__file__).parents[1] / "golden" / "bidense_released.npz"
RELEASED = UnitSpec(
    binarizer_options={"scale": "channel"},
    bypass="interleaved",
    transposed_scale="input-channel",
)
# Their name of each parameter to ours; their k, b and alpha are (1, C, 1, 1).
NAMES = {
    "conv.weight": "weight",
    "binarizer.k": "binarizer.k",
    "binarizer.b": "binarizer.b",
    "binarizer.alpha": "binarizer.a",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    "norm.running_mean": "norm.running_mean",
    "norm.running_var": "norm.running_var",
}


def numbers(case: int) -> dict[str, Tensor]:
    with numpy.load(GOLDEN) as golden:
        prefix = f"conv{case}/"
        return {
            key.removeprefix(prefix): torch.from_numpy(golden[key])
            for key in golden.files
            if key.startswith(prefix)
        }


def build(given: dict[str, Tensor]) -> BiConv2d:
    channels_in, channels_out, kernel, stride, padding, groups = given["meta"].tolist()
    unit = BiConv2d(
        channels_in,
        channels_out,
        kernel,
        stride,
        padding,
        groups=groups,
        unit=RELEASED,
        bypass=stride == 1,
    )
    state = {}
    for theirs, ours in NAMES.items():
        value = given[f"state/{theirs}"]
        state[ours] = value.flatten() if theirs.startswith("binarizer") else value
    missing = unit.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert set(missing.missing_keys) <= {"norm.num_batches_tracked"}
    return unit


def relative_error(got: Tensor, expected: Tensor) -> float:
    assert got.numel() == expected.numel()
    difference = (got.reshape(expected.shape) - expected).abs().max()
    return (difference / expected.abs().max()).item()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("case", range(5))
def test_released_layer(case: int, mode: str) -> None:
    given = numbers(case)
    unit = build(given).train(mode == "train")
    x = given["x"].clone().requires_grad_()
    y = unit(x)
    y.backward(given["train/gy"])

    errors = {
        "binarized": relative_error(unit.binarizer(x).detach(), given[f"{mode}/binarized"]),
        "y": relative_error(y.detach(), given[f"{mode}/y"]),
        "gx": relative_error(x.grad, given[f"{mode}/gx"]),
    }
    parameters = dict(unit.named_parameters())
    for theirs, ours in NAMES.items():
        if not theirs.startswith("norm.running"):
            gradient = parameters.pop(ours).grad
            errors[ours] = relative_error(gradient, given[f"{mode}/grad/{theirs}"])
    assert not parameters, "the unit has parameters that the released layer has not"
    assert {name: error for name, error in errors.items() if error > 1e-5} == {}


def test_the_released_policy_is_made_of_this_unit() -> None:
    unit = binarize.policies()["bidense-released"].unit
    assert (unit.binarizer, unit.weight, unit.bypass, unit.norm) == (
        "dab",
        RELEASED.weight,
        "interleaved",
        "batch",
    )
    assert dict(unit.binarizer_options) == {"scale": "channel"}
    assert unit.transposed_scale == "input-channel"


def test_thresholds_and_scales_are_vectors() -> None:
    per_channel = BiConv2d(6, 4, 3, unit=RELEASED).binarizer
    assert per_channel.k.shape == per_channel.b.shape == per_channel.a.shape == (6,)
    layer_wise = BiConv2d(6, 4, 3).binarizer
    assert layer_wise.k.shape == layer_wise.b.shape == (6,)
    assert layer_wise.a.numel() == 1
