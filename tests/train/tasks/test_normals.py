"""Surface normals: angles, losses, metrics, normals from depth, and learning from scenes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from binarize.data import Augment, Scenes, normals_from_depth
from binarize.errors import BinarizeError, DataError, ModelError
from binarize.train import Normals, NormalsDistillation, Trainer
from binarize.train.tasks.normals import NormalsMetric, angles

CPU = torch.device("cpu")


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(*shape, generator=generator).double(), dim=1)


def turned(normals: Tensor, degrees: float) -> Tensor:
    """Rotate about an axis at right angles to each normal: by exactly this angle."""
    axis = nn.functional.normalize(
        torch.linalg.cross(normals, unit(*normals.shape, seed=1), dim=1), dim=1
    )
    angle = math.radians(degrees)
    return normals * math.cos(angle) + torch.linalg.cross(axis, normals, dim=1) * math.sin(angle)


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 0.5, 11.0, 90.0, 179.9])
def test_angles_of_rotated_normals(degrees: float) -> None:
    first = unit(2, 3, 5, 7)
    found = angles(first, turned(first, degrees))
    torch.testing.assert_close(found, torch.full_like(found, degrees), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("degrees", [0.0, 11.0, 12.0, 25.0, 60.0])
def test_metrics_of_one_angle(degrees: float) -> None:
    task, truth = Normals(), unit(2, 3, 6, 5)
    metric = task.metric(CPU)
    task.update(metric, turned(truth, degrees), truth)
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found["mean"] == pytest.approx(degrees, abs=1e-5)
    assert found["median"] == pytest.approx(degrees, abs=0.011)
    shares = [float(degrees < limit) for limit in (11.25, 22.5, 30)]
    assert [found["11.25°"], found["22.5°"], found["30°"]] == shares
    assert list(found) == ["mean", "median", "11.25°", "22.5°", "30°"]


def test_pixels_are_pooled_over_batches() -> None:
    truth = unit(1, 3, 1, 8)
    metric = NormalsMetric()
    every = torch.ones(1, 1, 8, dtype=torch.bool)
    few = every.clone()
    few[..., 2:] = False
    metric.update(turned(truth, 10.0), truth, every)
    metric.update(turned(truth, 40.0), truth, few)
    metric.update(turned(truth, 40.0), truth, ~every)
    found = metric.compute()
    assert found["mean"].item() == pytest.approx((8 * 10 + 2 * 40) / 10)
    assert found["median"].item() == pytest.approx(10, abs=0.011)
    assert found["30°"].item() == pytest.approx(0.8)
    with pytest.warns(UserWarning, match="was called before"):
        assert all(math.isnan(value) for value in NormalsMetric().compute().values())


def test_losses() -> None:
    truth = unit(2, 3, 4, 4)
    guess = turned(truth, 60.0)
    assert Normals().loss(guess, truth).item() == pytest.approx(1 - math.cos(math.radians(60)))
    expected = (guess - truth).abs().mean().item()
    assert Normals("l1").loss(guess, truth).item() == pytest.approx(expected)
    for kind in ("cosine", "l1"):
        task = Normals(kind)
        assert task.loss(truth, truth).item() == pytest.approx(0, abs=1e-12)
        half = truth.clone()
        half[..., :2] = 0  # unknown
        other = guess.clone()
        other[..., :2] = -other[..., :2]
        assert task.loss(guess, half).item() == task.loss(other, half).item()
        nothing = task.loss(guess.clone().requires_grad_(), torch.zeros_like(truth))
        assert nothing.item() == 0
        nothing.backward()
        # The length of coded normals does not matter.
        assert task.loss(guess, truth * 1.02).item() == pytest.approx(
            task.loss(guess, truth).item()
        )


def test_outputs_have_any_length_and_size() -> None:
    task, normals = Normals(), unit(2, 3, 4, 6).float()
    torch.testing.assert_close(task.prepare(7 * normals, (4, 6)), normals)
    made = task.prepare({"out": normals.half()}, (8, 12))
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.norm(dim=1), torch.ones(2, 8, 12))
    assert task.prepare(torch.zeros(1, 3, 2, 2), (2, 2)).isfinite().all()
    assert task.decode(normals).shape == (2, 3, 4, 6)


def test_distillation() -> None:
    truth = unit(2, 3, 4, 4)
    teacher, student = turned(truth, 20.0), turned(truth, 50.0)
    plain = NormalsDistillation(2.0, tolerance=None, schedule="constant")
    gap = (1 - (student * teacher).sum(1)).mean().item()
    assert plain(student, teacher, truth, 0.9).item() == pytest.approx(2 * gap)
    careful = NormalsDistillation(2.0, tolerance=20.0, schedule="constant")
    assert careful(student, teacher, truth, 0).item() == pytest.approx(2 * gap / math.e)
    assert careful(student, teacher, None, 0).item() == pytest.approx(2 * gap)
    assert careful(student, teacher, 0 * truth, 0).item() == pytest.approx(2 * gap)
    assert Normals().distillation()(teacher, teacher, truth, 0).item() == pytest.approx(0, abs=1e-9)


# ------------------------------------------------------------------------ normals from depth


def plane(normal: tuple[float, float, float], fov: float, rows: int, columns: int) -> Tensor:
    """Depth of a plane at distance 2 with this normal (towards the camera)."""
    focal = columns / (2 * math.tan(math.radians(fov) / 2))
    u = (torch.arange(columns).double() - (columns - 1) / 2) / focal
    v = (torch.arange(rows).double() - (rows - 1) / 2) / focal
    n = nn.functional.normalize(torch.tensor(normal).double(), dim=0)
    depth = -2 / (n[0] * u + n[1] * v[:, None] + n[2])
    return depth.view(1, 1, rows, columns)


@pytest.mark.parametrize("normal", [(0.0, 0.0, -1.0), (0.3, -0.2, -1.0), (-0.5, 0.4, -0.9)])
@pytest.mark.parametrize(("rows", "columns", "step"), [(9, 12, 1), (7, 7, 2), (2, 5, 1)])
def test_planes_have_one_normal(
    normal: tuple[float, float, float], rows: int, columns: int, step: int
) -> None:
    expected = nn.functional.normalize(torch.tensor(normal).double(), dim=0)
    depth = plane(normal, 50.0, rows, columns)
    found = normals_from_depth(depth, fov=50.0, step=step)
    torch.testing.assert_close(found, expected.view(1, 3, 1, 1).expand_as(found))
    focal = columns / (2 * math.tan(math.radians(25)))
    matrix = torch.tensor(
        [[focal, 0, (columns - 1) / 2], [0, focal, (rows - 1) / 2], [0, 0, 1]], dtype=torch.float64
    )
    torch.testing.assert_close(normals_from_depth(depth, intrinsics=matrix[None], step=step), found)


def test_two_planes_meet_and_unknown_depth_stays_unknown() -> None:
    near, far = plane((0.2, 0.0, -1.0), 60, 8, 12), plane((0.0, -0.5, -1.0), 60, 8, 12) * 3
    left = torch.arange(12) < 6
    found = normals_from_depth(torch.where(left, near, far))
    torch.testing.assert_close(found[..., :6], normals_from_depth(near)[..., :6])
    torch.testing.assert_close(found[..., 6:], normals_from_depth(far)[..., 6:])
    holes = near.clone()
    holes[0, 0, 3, 4] = 0
    found = normals_from_depth(holes)
    assert (found[0, :, 3, 4] == 0).all()
    known = torch.ones(8, 12, dtype=torch.bool)
    known[3, 4] = False
    torch.testing.assert_close(found[0][:, known], normals_from_depth(near)[0][:, known])
    assert (normals_from_depth(torch.zeros(2, 1, 3, 3)) == 0).all()
    assert (normals_from_depth(torch.ones(1, 1, 1, 4)) == 0).all()  # one row has no slope


def test_scenes_give_exact_normals() -> None:
    data = Scenes(3, (64, 96), task="depth+normals")
    for sample in data:
        normal = sample["normal"]
        assert set(sample) == {"image", "depth", "normal"}
        torch.testing.assert_close(normal.norm(dim=0), torch.ones(64, 96), atol=1e-4, rtol=0)
        made = normals_from_depth(sample["depth"][None], fov=58.0)[0]
        # The true field of view varies, and edges have no slope: most pixels agree.
        assert angles(made[None], normal[None]).median() < 6
        assert (normal[:, 0] * torch.tensor([0.0, 0.0, -1.0]).view(3, 1)).sum(0).mean() > 0.5


def test_flips_turn_normals() -> None:
    plain = Scenes(2, (32, 48), task="normals")
    flipped = Scenes(2, (32, 48), task="normals", augment=Augment(flip=1.0))
    expected = plain[0]["normal"].flip(-1) * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1)
    torch.testing.assert_close(flipped[0]["normal"], expected)
    torch.testing.assert_close(flipped[0]["image"], plain[0]["image"].flip(-1))
    zoomed = Scenes(2, (32, 48), task="normals", augment=Augment(flip=0.0, zoom=2.0))
    torch.testing.assert_close(
        zoomed[0]["normal"].norm(dim=0), torch.ones(32, 48), atol=1e-4, rtol=0
    )


def test_it_learns() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Conv2d(16, 3, 3, 1, 1),
    )
    trainer = Trainer(net, task="normals", epochs=4, lr=1e-2, progress=False)
    data: Any = DataLoader(Scenes(12, (32, 48), task="normals"), 4, shuffle=True)
    before = trainer.evaluate(data)
    history = trainer.fit(data, data)
    assert history[-1]["mean"] < before["mean"] - 10
    assert trainer.best is not None
    assert trainer.best["metric"] == "mean"


def test_what_does_not_fit() -> None:
    cases: list[tuple[Any, type[BinarizeError], str]] = [
        (lambda: Normals("l2"), BinarizeError, "loss='l2': unknown name; use one of cosine, l1"),
        (
            lambda: Normals().prepare(torch.zeros(1, 2, 4, 4), (4, 4)),
            ModelError,
            "output=(1, 2, 4, 4): normals need three output channels; build the network with class",
        ),
        (
            lambda: Normals().check(torch.zeros(1, 4, 4)),
            DataError,
            "normal='torch.float32 (1, 4, 4)': must be unit vectors in a float tensor of shape "
            "(N, 3, H, W); decode 8-bit normals with normal.float() / 127.5 - 1",
        ),
        (
            lambda: Normals().check(torch.full((1, 3, 2, 2), 2.0)),
            DataError,
            "must have length 1, or 0 (unknown); normalise the vectors, and set unknown ones to 0",
        ),
        (
            lambda: Normals().check(torch.full((1, 3, 2, 2), math.nan)),
            DataError,
            "normal=nan",
        ),
        (
            lambda: normals_from_depth(torch.zeros(4, 4)),
            DataError,
            "depth='torch.float32 (4, 4)': must be metres in a float tensor of shape (N, 1, H, W)",
        ),
        (
            lambda: normals_from_depth(torch.zeros(1, 1, 4, 4), fov=180.0),
            DataError,
            "fov=180.0: must be between 0 and 180 degrees; give e.g. 60",
        ),
        (
            lambda: normals_from_depth(torch.zeros(1, 1, 4, 4), intrinsics=torch.eye(2)),
            DataError,
            "intrinsics=(2, 2): must be (3, 3) or (N, 3, 3); give K in pixels",
        ),
        (
            lambda: normals_from_depth(torch.zeros(1, 1, 4, 4), step=0),
            DataError,
            "step=0: must be positive; use 1 for direct neighbours",
        ),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind) as caught:
            call()
        assert message in str(caught.value)
    Normals().check(torch.zeros(1, 3, 2, 2))
