"""Depth: SILog, the metrics and the output convention against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from binarize.errors import DataError, ModelError
from binarize.train import Depth
from binarize.train.tasks.depth import DEPTH_METRICS, DepthMetric, silog_loss

CPU = torch.device("cpu")


def test_silog_closed_form() -> None:
    error = torch.randn(2, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(2, 1, 5, 6) < 0.7
    g = error.detach()[valid].numpy()
    for focus in (0.0, 0.5, 0.85, 1.0):
        expected = math.sqrt((g**2).mean() - focus * g.mean() ** 2)
        assert silog_loss(error, valid, focus).item() == pytest.approx(expected, rel=1e-12)
    loss = silog_loss(error, valid)
    loss.backward()
    # d/dg sqrt(mean g² − λ·mean(g)²) = (g − λ·mean(g)) / (n·loss)
    slope = (g - 0.85 * g.mean()) / (g.size * loss.item())
    assert error.grad is not None
    assert np.allclose(error.grad[valid].numpy(), slope, rtol=1e-10)
    assert not error.grad[~valid].any()


def test_silog_forgives_a_common_factor_by_its_focus() -> None:
    valid = torch.ones(4, dtype=torch.bool)
    error = torch.full((4,), 0.3, dtype=torch.float64)
    assert silog_loss(error, valid, 0.0).item() == pytest.approx(0.3)
    assert silog_loss(error, valid, 0.85).item() == pytest.approx(0.3 * math.sqrt(0.15))
    assert silog_loss(error, valid, 1.0).item() < 1e-8


@pytest.mark.parametrize("count", [2, 0])
def test_nothing_to_learn_from(count: int) -> None:
    """No valid pixel at all, and an empty batch: no loss, finite gradient, no metric."""
    task = Depth()
    output = torch.randn(count, 1, 4, 5, requires_grad=True)
    target = torch.zeros(count, 1, 4, 5)
    task.check(target)
    prepared = task.prepare(output, (4, 5))
    loss = task.loss(prepared, target)
    loss.backward()
    assert 0 <= loss.item() < 1e-15
    assert output.grad is not None
    assert not output.grad.any()
    metric = task.metric(CPU)
    task.update(metric, prepared.detach(), target)
    assert all(value.isnan() for value in metric.compute().values())


def test_a_perfect_prediction_has_a_finite_gradient() -> None:
    task = Depth()
    output = torch.zeros(1, 1, 4, 4, requires_grad=True)
    loss = task.loss(task.prepare(output, (4, 4)), torch.full((1, 1, 4, 4), 5.0))
    loss.backward()
    assert loss.item() < 1e-6
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_metrics_closed_form() -> None:
    generator = np.random.default_rng(0)
    truth = generator.uniform(0.5, 10, (5, 1, 6, 7))
    depth = truth * np.exp(generator.normal(0, 0.3, truth.shape))
    valid = generator.random(truth.shape) < 0.8
    valid[3] = False  # an image without truth is left out
    expected = []
    for d_all, t_all, seen in zip(depth, truth, valid, strict=True):
        if seen.any():
            d, t = d_all[seen], t_all[seen]
            ratio, g = np.maximum(d / t, t / d), np.log(d) - np.log(t)
            expected.append(
                [
                    (ratio < 1.25).mean(),
                    (ratio < 1.25**2).mean(),
                    (ratio < 1.25**3).mean(),
                    (np.abs(d - t) / t).mean(),
                    math.sqrt(((d - t) ** 2).mean()),
                    np.abs(np.log10(d) - np.log10(t)).mean(),
                    math.sqrt((g**2).mean()),
                    100 * math.sqrt((g**2).mean() - g.mean() ** 2),
                    ((d - t) ** 2 / t).mean(),
                ]
            )
    metric = DepthMetric()
    for part in (slice(0, 2), slice(2, 5)):  # how the images are batched does not matter
        metric.update(*(torch.from_numpy(values[part]) for values in (depth, truth, valid)))
    values = metric.compute()
    assert tuple(values) == DEPTH_METRICS
    found = [value.item() for value in values.values()]
    assert found == pytest.approx(np.mean(expected, 0).tolist(), rel=1e-12)


def test_metrics_of_a_constant() -> None:
    """Twice the truth everywhere: every number is known by heart."""
    metric = DepthMetric()
    truth = torch.full((2, 1, 3, 3), 2.0, dtype=torch.float64)
    metric.update(2 * truth, truth, truth > 0)
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == pytest.approx(
        {
            "δ1": 0,
            "δ2": 0,
            "δ3": 0,
            "AbsRel": 1,
            "RMSE": 2,
            "log10": math.log10(2),
            "RMSElog": math.log(2),
            "SILog": 0,
            "SqRel": 2,
        },
        abs=1e-5,
    )


def test_output_convention() -> None:
    task = Depth(8.0)
    output = torch.randn(2, 1, 4, 6, dtype=torch.float64)
    expected = 8.0 * torch.sigmoid(output)
    assert torch.allclose(task.decode(output), expected, rtol=1e-12)
    assert torch.allclose(task.prepare({"depth": output}, (4, 6)).exp(), expected, rtol=1e-12)
    assert torch.allclose(Depth(output="metres").decode(expected), expected, rtol=1e-12)
    assert task.decode(output, (8, 12)).shape == (2, 1, 8, 12)
    assert task.decode(output[:, 0]).shape == (2, 1, 4, 6)
    # far below and above what a sigmoid resolves
    assert task.prepare(torch.tensor([[[[-1e3, 1e3]]]]), (1, 2)).isfinite().all()


def test_which_pixels_count() -> None:
    target = torch.tensor([0.0, 0.1, 10.0, 10.1]).view(1, 1, 1, 4)
    assert Depth(10).valid(target).flatten().tolist() == [False, True, True, False]


def test_what_does_not_fit() -> None:
    task = Depth()
    with pytest.raises(ModelError) as caught:
        task.prepare(torch.zeros(1, 2, 4, 4), (4, 4))
    assert str(caught.value) == (
        "output=(1, 2, 4, 4): depth needs one output channel; build the network with classes=1"
    )
    for target, message in (
        (torch.zeros(1, 4, 4), "must be metres in a float tensor of shape"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.int64), "must be metres in a float tensor of shape"),
        (torch.full((1, 1, 4, 4), -1.0), r"depth=-1.0: must be 0 \(unknown\) or positive; set"),
        (torch.full((1, 1, 4, 4), torch.nan), r"depth=nan: must be 0 \(unknown\) or positive"),
    ):
        with pytest.raises(DataError, match=message):
            task.check(target)
    with pytest.raises(DataError, match="max_depth=0: must be positive; give metres"):
        Depth(0)
    with pytest.raises(ModelError, match="output='disparity': unknown convention; use 'logit'"):
        Depth(output="disparity")
