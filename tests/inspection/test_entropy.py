"""Information entropy against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from binarize.inspection.tally import entropy


def test_two_levels() -> None:
    p = torch.tensor([0.5, 0.0, 1.0, 0.25, 0.75], dtype=torch.float64)
    quarter = 0.25 * 2 + 0.75 * math.log2(4 / 3)
    expected = torch.tensor([1.0, 0.0, 0.0, quarter, quarter], dtype=torch.float64)
    torch.testing.assert_close(entropy(torch.stack([p, 1 - p], -1)), expected, rtol=0, atol=1e-15)


def test_many_levels() -> None:
    assert entropy(torch.full((2, 8), 1 / 8)).tolist() == pytest.approx([3.0, 3.0])
    assert entropy(torch.tensor([0.5, 0.25, 0.25])).item() == pytest.approx(1.5)
    assert entropy(torch.zeros(0, 2)).shape == (0,)
