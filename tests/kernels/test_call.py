"""The record of a call of the 1-bit operator."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from binarize.kernels import UnitCall, unit

# Saved programs and exported graphs hold calls by position: the order and the types never change,
# and what is new comes at the end with a default.
SCHEMA = """\
binarize::unit(Tensor[] sources, int[] upsample, Tensor[] means, Tensor weight, Tensor gain, \
Tensor offset, Tensor? mean_gain, Tensor threshold, Tensor? flip, Tensor? exponent, \
int[] kernel, int[] stride, SymInt[] padding, int[] dilation, int groups, str padding_mode, \
bool transposed, SymInt[] output_padding, str bypass, SymInt[] bypass_offset, \
Tensor[] residuals, Tensor? act_shift, Tensor? act_slope, Tensor? act_out_shift, \
bool want_means, float? y_scale=None, int y_zero=0) -> (Tensor, Tensor)"""


def call(**changes: Any) -> UnitCall:
    """A 3x3 unit from 6 and 2 channels at 5x7 to 4."""
    given: dict[str, Any] = dict.fromkeys(UnitCall._fields[:25])
    given |= {
        "sources": [torch.zeros(2, 6, 5, 7), torch.zeros(2, 2, 5, 7)],
        "upsample": [1, 1],
        "gain": torch.ones(4),
        "kernel": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1, 1, 1),
        "dilation": (1, 1),
        "groups": 1,
        "transposed": False,
        "output_padding": (0, 0),
    }
    return UnitCall(**given | changes)


def test_the_schema_is_a_promise() -> None:
    assert str(unit._schema) == SCHEMA
    assert list(UnitCall._fields) == [argument.name for argument in unit._schema.arguments]


@pytest.mark.parametrize(
    ("changes", "size", "operations"),
    [
        ({}, [5, 7], 2 * 35 * 9 * 8 * 4),
        ({"groups": 2}, [5, 7], 2 * 35 * 9 * 4 * 4),
        ({"stride": (2, 2)}, [3, 4], 2 * 12 * 9 * 8 * 4),
        ({"padding": (0, 0, 0, 0)}, [3, 5], 2 * 15 * 9 * 8 * 4),
        ({"upsample": [2, 2]}, [10, 14], 2 * 140 * 9 * 8 * 4),
        # A transposed convolution multiplies at each position of its input.
        ({"transposed": True, "stride": (2, 2)}, [9, 13], 2 * 35 * 9 * 8 * 4),
        ({"sources": [torch.zeros(0, 8, 5, 7)], "upsample": [1]}, [5, 7], 0),
    ],
)
def test_size_and_operations(changes: dict[str, Any], size: list[int], operations: int) -> None:
    made = call(**changes)
    assert made.result_size() == size
    assert made.operations() == operations
