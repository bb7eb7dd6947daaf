"""Bop against its formula, and in the trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from binarize import convert
from binarize.data import Scenes
from binarize.errors import BinarizeError
from binarize.train import Bop, SilentProgress, Trainer

SIZE = (16, 24)


def groups(latent: Tensor, plain: Tensor) -> list[dict[str, Any]]:
    return [
        {"name": "latent", "params": [latent], "weight_decay": 0.5},
        {"name": "plain", "params": [plain], "weight_decay": 0.0},
    ]


def test_signs_follow_the_average_of_the_gradient() -> None:
    latent = nn.Parameter(torch.tensor([0.5, -0.25, 2.0, -1.0, 0.0]))
    plain = nn.Parameter(torch.ones(2))
    optimizer = Bop(rate=0.5, threshold=0.3)(groups(latent, plain), 0.1)
    twin = nn.Parameter(torch.ones(2))
    adam = torch.optim.AdamW([twin], lr=0.1, weight_decay=0.0)
    gradients = [
        [1.0, 1.0, 0.5, -1.0, 1.0],
        [0.1, -1.0, 0.5, 1.0, 1.0],
        [-2.0, -1.0, 0.5, 0.0, 1.0],
    ]
    average, weight = [0.0] * 5, latent.tolist()
    for given in gradients:
        for i, g in enumerate(given):
            average[i] = 0.5 * average[i] + 0.5 * g
            same = math.copysign(1, average[i]) == math.copysign(1, weight[i]) and weight[i] != 0
            weight[i] = -weight[i] if abs(average[i]) >= 0.3 and same else weight[i]
        latent.grad, plain.grad, twin.grad = torch.tensor(given), torch.ones(2), torch.ones(2)
        optimizer.step()
        adam.step()
        assert latent.tolist() == weight
        assert torch.equal(plain, twin)
        assert latent.grad.tolist() == pytest.approx(given)  # type: ignore[union-attr]
    assert weight == [0.5, 0.25, -2.0, 1.0, 0.0]


def test_the_rate_follows_the_schedule() -> None:
    latent = nn.Parameter(torch.tensor([1.0]))
    optimizer = Bop(rate=0.4, threshold=1.0)(groups(latent, nn.Parameter(torch.ones(1))), 0.1)
    latent.grad = torch.ones(1)
    optimizer.param_groups[0]["lr"] = 0.05
    optimizer.step()
    assert optimizer.state[latent]["average"].item() == pytest.approx(0.2)
    factored = groups(latent, nn.Parameter(torch.ones(1)))
    factored[0] |= {"lr": 0.3, "factor": 3.0}
    optimizer = Bop(rate=0.4, threshold=1.0)(factored, 0.1)
    optimizer.step()
    assert optimizer.state[latent]["average"].item() == pytest.approx(0.4)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1),
    )  # fmt: skip
    return convert(made, example_inputs=torch.zeros(1, 3, *SIZE))


def loader() -> DataLoader[Any]:
    return DataLoader(Scenes(8, SIZE, task="segmentation"), 4)


def trainer(student: nn.Module, **options: Any) -> Trainer:
    given = {"epochs": 3, "lr": 1e-2, "progress": False, "optimizer": Bop(1e-2, 1e-5), **options}
    return Trainer(student, **given)


def test_a_training_flips_signs_and_keeps_magnitudes(tmp_path: Path) -> None:
    class Killed(SilentProgress):
        def epoch(self, record: Any) -> None:
            raise KeyboardInterrupt

    whole = network()
    (name,) = (n for n, m in whole.named_modules() if callable(getattr(m, "binary_weight", None)))
    layer: Any = whole.get_submodule(name)
    before = layer.weight.detach().clone()
    history = trainer(whole, flips=True).fit(loader())
    after = layer.weight.detach()
    assert torch.equal(before.abs(), after.abs())
    assert not torch.equal(before, after)
    assert any(0 < record["flip_ratio"] < 1 for record in history)
    # The averages are in the checkpoint.
    with pytest.raises(KeyboardInterrupt):
        trainer(network(), output_dir=tmp_path, progress=Killed()).fit(loader())
    resumed = network(1)
    trainer(resumed, output_dir=tmp_path, resume="auto").fit(loader())
    for mine, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    again = trainer(network(), output_dir=tmp_path, resume="auto", optimizer=Bop(1e-2, 1e-4))
    with pytest.raises(BinarizeError, match="threshold"):
        again.fit(loader())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": 0.0}, "rate=0.0: must be above 0, at most 1; use e.g. 1e-3"),
        ({"rate": 1.5}, "rate=1.5: must be above 0"),
        ({"rate": float("nan")}, "rate=nan: must be above 0"),
        ({"threshold": -1e-9}, "threshold=-1e-09: must not be negative; use e.g. 1e-6"),
        ({"threshold": "low"}, "threshold='low': must be a number"),
    ],
)
def test_numbers_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BinarizeError) as caught:
        Bop(**given)
    assert message in str(caught.value)


def test_what_bop_cannot_train() -> None:
    with pytest.raises(BinarizeError, match="'Bop': flips binary weights, and the network"):
        trainer(nn.Conv2d(3, 6, 1)).fit(loader())
    with pytest.raises(BinarizeError, match=r"two_steps=0\.5: trains float weights, which"):
        trainer(network(), two_steps=0.5)
