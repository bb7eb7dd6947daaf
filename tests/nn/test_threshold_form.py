"""The threshold form that packed layers carry out says what the binarizer itself computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from binarize.nn import DistributionAdaptiveBinarizer, ThresholdForm


def carry_out(form: ThresholdForm, x: Tensor) -> Tensor:
    """Values by the form's own words, for maps (N, C, *spatial)."""
    positions = list(range(2, x.dim()))
    column = (1, -1) + (1,) * len(positions)
    mean = x.mean(positions, keepdim=True) if positions else x
    t = form.b.view(column).expand(mean.shape)
    if form.k is not None:
        t = form.k.view(column) * mean + t
    signs = torch.where(x < t, -1.0, 1.0).to(x.dtype)
    if form.flip is not None:
        signs = torch.where(form.flip.view(column), torch.where(x > t, -1.0, 1.0).to(x), signs)
    size = (x - t).abs().flatten(1).mean(1).view((-1,) + (1,) * (x.dim() - 1))
    if form.scale == "exponential":
        assert form.exponent is not None
        signs = signs * torch.exp(form.exponent * (size - 1))
    elif form.scale == "magnitude":
        signs = signs * size
    signs = signs if form.factor is None else signs * form.factor
    return signs if form.offset is None else signs + form.offset


def scramble(binarizer: Any) -> Any:
    with torch.no_grad():
        for parameter in binarizer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5 + 0.3)
    return binarizer


@pytest.mark.parametrize("spatial", [(7,), (5, 4), (2, 3, 2), (1, 1)])
def test_dab(spatial: tuple[int, ...]) -> None:
    dab = scramble(DistributionAdaptiveBinarizer(3).double())
    form = dab.threshold_form()
    assert form is not None
    x = torch.randn(4, 3, *spatial, dtype=torch.float64)
    torch.testing.assert_close(carry_out(form, x), dab(x).detach())
    tensors = [value for value in vars(form).values() if isinstance(value, Tensor)]
    assert len(tensors) == 3
    assert not any(tensor.requires_grad for tensor in tensors)


def test_dab_with_a_scale_per_channel_has_none() -> None:
    assert DistributionAdaptiveBinarizer(3, scale="channel").threshold_form() is None
