"""The running average of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from binarize.data import Scenes
from binarize.errors import BinarizeError
from binarize.train import SilentProgress, Trainer
from binarize.train.schedules import WeightAverage, applied


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1))


def loader(seed: int = 0) -> DataLoader[Any]:
    return DataLoader(Scenes(8, (16, 24), seed=seed, task="segmentation"), 4, shuffle=seed == 0)


def trainer(model: nn.Module, **options: Any) -> Trainer:
    return Trainer(model, **{"epochs": 3, "lr": 5e-2, "progress": False, "ema": 0.9, **options})


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_formula() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    average, expected = WeightAverage(model, 0.25), 1.0
    for n, weight in enumerate((3.0, -2.0, 7.0), 1):
        nn.init.constant_(model.weight, weight)
        average.update()
        keep = min(0.25, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * weight
    assert average.average["weight"].item() == pytest.approx(expected)
    with applied(average):
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 7.0


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_decays_that_cannot_be(decay: float) -> None:
    with pytest.raises(BinarizeError, match="ema=.*: must be between 0 and 1"):
        trainer(network(), ema=decay).fit(loader())


def test_what_is_measured_is_what_is_kept(tmp_path: Path) -> None:
    model = network()
    run = trainer(model, output_dir=tmp_path)
    history = run.fit(loader(), loader(1))
    assert run.evaluate(loader(1))["loss"] == pytest.approx(history[-1]["val_loss"], rel=1e-6)
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert same({**last["student"], **last["ema"]["average"]}, state(model))
    assert not same(last["student"], state(model))
    assert last["ema"]["updates"] == 6
    other = network()
    trainer(other, ema=None).fit(loader(), loader(1))
    assert same(last["student"], state(other))  # the training itself is the same


class _Killed(SilentProgress):
    def step(self, epoch: int, step: int, loss: float | None) -> None:
        if epoch == 3:
            raise KeyboardInterrupt


def test_a_resumed_run_has_the_same_average(tmp_path: Path) -> None:
    whole = network()
    expected = trainer(whole).fit(loader(), loader(1))
    with pytest.raises(KeyboardInterrupt):
        trainer(network(), output_dir=tmp_path, progress=_Killed()).fit(loader(), loader(1))
    parts = network()
    run = trainer(parts, output_dir=tmp_path, resume="auto", select="best")
    history = run.fit(loader(), loader(1))
    assert history[-1]["val_loss"] == expected[-1]["val_loss"]
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    assert same(best["student"], state(parts))
    if best["best"]["epoch"] == 3:
        assert same(state(parts), state(whole))
