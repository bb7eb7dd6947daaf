"""Sharpness-aware minimisation against its formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import binarize
from binarize.data import Scenes
from binarize.errors import BinarizeError
from binarize.train import Trainer
from binarize.train.sharpness import Sharpness


class Scale(nn.Module):
    """Two numbers that the image is multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w.view(1, 2, 1, 1)


class Squares:
    """Half the squared distance of two channels, weighted 1 and 4."""

    name, target, monitor, higher_is_better = "squares", "mask", "loss", False

    def prepare(self, output: Tensor, size: tuple[int, int]) -> Tensor:
        return output

    def check(self, target: Tensor) -> None: ...

    def distillation(self) -> None: ...

    def loss(self, prepared: Tensor, target: Tensor) -> Tensor:
        per_channel = (prepared - target[:, None]).square().mean((0, 2, 3)) / 2
        return (per_channel * torch.tensor([1.0, 4.0])).sum()


def ones(count: int) -> Any:
    batch = [(torch.ones(2, 2, 2), torch.zeros(2, 2)) for _ in range(count)]
    return DataLoader(batch, count)


def descend(radius: float | None, accumulate: int = 1) -> Tensor:
    model = Scale()
    Trainer(
        model, task=Squares(), epochs=1, sam=radius, progress=False, accumulate=accumulate,
        optimizer=lambda groups, lr: torch.optim.SGD(groups, lr=0.1),
        scheduler=lambda optimizer, steps: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    ).fit(ones(2))  # fmt: skip
    return model.w.detach()


@pytest.mark.parametrize("radius", [0.01, 0.5, 20.0])
def test_one_step(radius: float) -> None:
    w, curvature = torch.tensor([3.0, -2.0]), torch.tensor([1.0, 4.0])
    gradient = curvature * w
    there = w + radius * gradient / gradient.norm()
    torch.testing.assert_close(descend(radius), w - 0.1 * curvature * there)


def test_none_is_a_plain_step() -> None:
    w, curvature = torch.tensor([3.0, -2.0]), torch.tensor([1.0, 4.0])
    torch.testing.assert_close(descend(None), w - 0.1 * curvature * w)


def test_weights_come_back_to_the_same_bits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, bias=False))
    model[2].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sharpness, x = Sharpness(model, 0.3), torch.randn(2, 3, 8, 8)
    sharpness.move(lambda: model(x).square().mean())
    moved = [p - before[name] for name, p in model.named_parameters()]
    length = torch.cat([change.flatten() for change in moved]).norm().item()
    assert length == pytest.approx(0.3, rel=1e-4)
    assert not moved[-1].any()
    # The first pass leaves the statistics alone.
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    sharpness.restore()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sharpness.restore()  # nothing to do


def test_nothing_to_move() -> None:
    model = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sharpness = Sharpness(model, 0.3)
    sharpness.move(lambda: (model(torch.zeros(1, 2)) * 0).sum())  # a gradient of 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sharpness.restore()


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2)]
    layers += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1)]
    return binarize.convert(nn.Sequential(*layers))


def fit(folder: Path, epochs: int = 2, **options: Any) -> tuple[dict[str, Tensor], list[Any]]:
    model, scenes = network(), Scenes(6, (16, 24), task="segmentation")
    options = {"lr": 1e-2, "sam": 0.1, "accumulate": 2, "progress": False, **options}
    trainer = Trainer(model, teacher=network(), epochs=epochs, output_dir=folder, **options)
    trainer.fit(DataLoader(scenes, 2, shuffle=True))
    return model.state_dict(), trainer.history


def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    whole, _ = fit(tmp_path / "whole")

    def stop(trainer: Trainer, entry: dict[str, Any]) -> bool:
        return True

    fit(tmp_path / "part", callbacks=[stop])
    resumed, history = fit(tmp_path / "part", resume="auto")
    assert [entry["epoch"] for entry in history] == [1, 2]
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    with pytest.raises(BinarizeError, match="sam"):
        fit(tmp_path / "part", resume="auto", sam=0.2)
    plain, _ = fit(tmp_path / "plain", sam=None)
    assert any(not torch.equal(value, plain[name]) for name, value in whole.items())


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan")])
def test_radii_that_cannot_be(radius: float) -> None:
    with pytest.raises(BinarizeError, match=r"sam=.*: must be positive; use e\.g\. 0\.05"):
        Trainer(network(), sam=radius)
