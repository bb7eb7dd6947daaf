"""A unit's norm on a single value per channel is refused by the layer's name."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.errors import BinarizeError
from binarize.nn import BiLinear

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


class Squeezed(nn.Module):
    """A pooled branch: one value per channel."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.body, self.pooled = nn.Conv2d(8, 8, 3, padding=1), nn.Sequential(layer, norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        pooled = F.adaptive_avg_pool2d(x, 1)
        if isinstance(self.pooled[0], nn.Linear):
            pooled = pooled.flatten(1)
        return self.head(x + self.pooled(pooled).reshape(len(x), 8, 1, 1))


@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.BatchNorm2d(8)])
@pytest.mark.parametrize("copies", [1, 2])
def test_one_value_per_channel(norm: Any, copies: int, told: Any) -> None:
    net = Squeezed(nn.Conv2d(8, 8, 1), norm())
    wish = {"pooled.0": "binarize"}
    student = binarize.convert(net, example_inputs=X, overrides=wish)
    student = pickle.loads(pickle.dumps(student)).train()
    image = torch.randn(copies, 3, 8, 8)
    if copies == 2:
        assert student(image).isfinite().all()
        return
    with pytest.raises(BinarizeError) as error:
        student(image)
    assert told(error.value) == (
        "input=(1, 8, 1, 1): layer 'pooled.0' has a BatchNorm, which needs more than one value per "
        "channel in training; use a larger batch or larger images, or keep this layer in float: "
        "overrides={'pooled.0': 'keep'}"
    )
    assert student.eval()(image).isfinite().all()


def test_one_value_without_running_statistics() -> None:
    norm = nn.BatchNorm2d(8, track_running_stats=False)
    wish = {"pooled.0": "binarize"}
    student = binarize.convert(
        Squeezed(nn.Conv2d(8, 8, 1), norm), example_inputs=X, overrides=wish
    ).eval()
    with pytest.raises(BinarizeError, match=r"pooled\.0"):
        student(X[:1])


def test_a_unit_by_itself_names_its_class() -> None:
    with pytest.raises(BinarizeError, match="BiLinear has a BatchNorm"):
        BiLinear(4, 4).train()(torch.randn(1, 4))
    assert BiLinear(4, 4).train()(torch.randn(2, 4)).isfinite().all()
