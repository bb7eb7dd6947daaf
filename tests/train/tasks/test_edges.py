"""Edges: balanced loss, F-measures on hand-made maps, edges of labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from binarize.data import Scenes, label_edges
from binarize.errors import BinarizeError, DataError, ModelError
from binarize.train import Edges, Trainer
from binarize.train.tasks.edges import EdgesMetric, spread


def lines(*columns: int, size: tuple[int, int] = (10, 10)) -> Tensor:
    """Vertical lines."""
    found = torch.zeros(1, *size)
    for column in columns:
        found[..., column] = 1
    return found


def scores(pairs: list[tuple[Tensor, Tensor]], radius: float = 0.0) -> dict[str, float]:
    metric = EdgesMetric(radius / math.hypot(10, 10))
    for guess, truth in pairs:
        metric.update(guess, truth.long(), truth != 255)
    return {name: value.item() for name, value in metric.compute().items()}


def test_a_perfect_map_and_a_wrong_one() -> None:
    truth = lines(3)
    assert scores([(truth, truth)]) == {"ODS-F": 1, "OIS-F": 1}
    assert scores([(lines(7), truth)], radius=3) == {"ODS-F": 0, "OIS-F": 0}
    assert scores([(lines(), truth)]) == {"ODS-F": 0, "OIS-F": 0}
    with pytest.warns(UserWarning, match="was called before"):
        assert math.isnan(EdgesMetric().compute()["ODS-F"].item())
    assert math.isnan(scores([(lines(1), lines())])["ODS-F"])  # nothing to find


def test_the_tolerance_decides_what_matches() -> None:
    for shift, radius, score in ((1, 1.0, 1.0), (2, 1.0, 0.0), (2, 2.0, 1.0), (1, 0.9, 0.0)):
        assert scores([(lines(3 + shift), lines(3))], radius)["ODS-F"] == score
    # Two of three predicted lines match, and one of two true ones: P = 2/3, R = 1/2.
    found = scores([(lines(1, 2, 8), lines(1, 5))], radius=1)
    assert found["ODS-F"] == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))


def test_one_threshold_for_the_set_and_one_for_each_image() -> None:
    # In the first image noise has 0.4 and the edge 0.8, in the second the edge only 0.3.
    first, second = 0.8 * lines(3) + 0.4 * lines(7), 0.3 * lines(3)
    found = scores([(first, lines(3)), (second, lines(3))])
    assert found["OIS-F"] == pytest.approx(1)
    # t = 0.3: P = 20/30, R = 1, F = 0.8; t = 0.8: P = 1, R = 0.5, F = 2/3.
    assert found["ODS-F"] == pytest.approx(0.8)
    both = EdgesMetric(0.0)
    pair = torch.cat([first, second]), torch.cat([lines(3), lines(3)]).long()
    both.update(*pair, torch.ones(2, 10, 10, dtype=torch.bool))
    assert both.compute()["ODS-F"].item() == pytest.approx(0.8)
    assert both.compute()["OIS-F"].item() == pytest.approx(1)


@pytest.mark.parametrize("hundredths", [1, 29, 57, 58, 99])
def test_thresholds_are_inclusive(hundredths: int) -> None:
    # Noise below by one threshold is avoided, noise at the same one is not.
    edge = hundredths / 100 * lines(3)
    if hundredths > 1:
        lower = edge + (hundredths - 1) / 100 * lines(7)
        assert scores([(lower, lines(3))])["ODS-F"] == 1
    same = edge + hundredths / 100 * lines(7)
    assert scores([(same, lines(3))])["ODS-F"] == pytest.approx(2 / 3)


def test_spread_reaches_a_disc() -> None:
    point = torch.zeros(1, 9, 9)
    point[0, 4, 4] = 0.7
    rows, columns = torch.meshgrid(torch.arange(9) - 4, torch.arange(9) - 4, indexing="ij")
    for radius in (0.0, 1.0, 1.5, 2.3):
        inside = (rows.square() + columns.square()).double().sqrt() <= radius
        torch.testing.assert_close(spread(point, radius)[0], 0.7 * inside)


def test_the_loss_balances_edges_and_the_rest() -> None:
    task, truth = Edges(), lines(3).long()
    logits = torch.randn(1, 1, 10, 10, dtype=torch.float64)
    p = logits[0, 0].sigmoid()
    by_hand = -(0.9 * p[:, 3].log().sum() + 0.1 * (1 - p[:, torch.arange(10) != 3]).log().sum())
    assert task.loss(logits, truth).item() == pytest.approx(by_hand.item() / 100)
    # Equally sure of everything: edges and the rest contribute the same.
    assert task.loss(torch.zeros(1, 1, 10, 10), truth).item() == pytest.approx(
        2 * 0.1 * 0.9 * math.log(2)
    )
    assert task.loss(40.0 * (2 * truth[:, None] - 1), truth).item() == pytest.approx(0, abs=1e-6)
    ignored = truth.clone()
    ignored[:, :4] = 255
    other = logits.clone()
    other[..., :4, :] = 9
    assert task.loss(logits, ignored).item() == task.loss(other, ignored).item()
    assert task.loss(logits, torch.full_like(truth, 255)).item() == 0


def test_distillation() -> None:
    loss = Edges().distillation()
    teacher, student = torch.randn(2, 1, 6, 6), torch.randn(2, 1, 6, 6)
    truth = torch.zeros(2, 6, 6, dtype=torch.long)
    assert loss(teacher, teacher, truth, 0.0).item() == pytest.approx(0, abs=1e-7)
    assert loss(student, teacher, None, 0.0).item() > 0
    assert loss(student, teacher, truth + 255, 0.0).item() == 0
    assert loss(student, teacher, truth, 1.0).item() == pytest.approx(0, abs=1e-7)


def test_edges_of_labels() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 1, 255]])
    expected = torch.tensor([[0, 1, 0, 0], [1, 1, 0, 255], [0, 1, 255, 255]])
    assert torch.equal(label_edges(mask), expected)
    assert torch.equal(label_edges(mask[:1, :1]), torch.zeros(1, 1, dtype=torch.long))
    sample = Scenes(1, (24, 32), task="edges")[0]
    assert torch.equal(sample["edge"], label_edges(sample["mask"]))


def test_it_learns() -> None:
    torch.manual_seed(0)
    body = nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU()
    net = nn.Sequential(*body, nn.Conv2d(8, 1, 3, 1, 1))
    trainer = Trainer(net, task="edges", epochs=3, lr=1e-2, progress=False)
    data: Any = DataLoader(Scenes(8, (32, 48), task="edges"), 4, shuffle=True)
    before = trainer.evaluate(data)
    history = trainer.fit(data, data)
    assert history[-1]["val_loss"] < before["loss"]
    assert history[-1]["OIS-F"] >= history[-1]["ODS-F"] > 0


def test_what_does_not_fit() -> None:
    cases: list[tuple[Any, type[BinarizeError], str]] = [
        (
            lambda: Edges(tolerance=2),
            BinarizeError,
            "tolerance=2: must be from 0 to 0.1 of the diagonal; use e.g. 0.0075",
        ),
        (
            lambda: Edges().prepare(torch.zeros(1, 2, 4, 4), (4, 4)),
            ModelError,
            "output=(1, 2, 4, 4): edges need one output channel; build the network with classes=1",
        ),
        (
            lambda: Edges().check(torch.zeros(1, 1, 4, 4)),
            DataError,
            "edge='torch.float32 (1, 1, 4, 4)': must be 0 or 1 in an integer tensor of shape "
            "(N, H, W); convert with edge.long() and remove the channel dimension",
        ),
        (
            lambda: Edges().check(torch.full((1, 4, 4), 254)),
            DataError,
            "edge=254: must be 0 or 1, or 255 (ignored); divide maps of 0 and 255 by 255",
        ),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind) as caught:
            call()
        assert str(caught.value) == message
