"""Distillation: closed forms, and the safeguards that plain distillation lacks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from binarize.errors import BinarizeError
from binarize.train import DepthDistillation, SegmentationDistillation
from binarize.train.distillation.schedule import anneal
from binarize.train.tasks.depth import gradient_loss
from binarize.train.tasks.segmentation import channel_wise_loss, pixel_wise_loss


def _softmax(values: np.ndarray) -> np.ndarray:
    grown = np.exp(values - values.max())
    return grown / grown.sum()


@pytest.fixture
def maps() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    student = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 4, 5, 6, dtype=torch.float64) * 2
    target = torch.randint(0, 4, (2, 5, 6))
    target[:, 0] = 255
    return student, teacher, target


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 0.0), (3.0, 0.0), (2.0, 0.4)])
def test_pixel_wise_closed_form(maps, temperature: float, share: float) -> None:
    student, teacher, target = maps
    trusted = target != 255
    loss = pixel_wise_loss(student, teacher, trusted, temperature, target, share)
    s, t = student.detach().numpy(), teacher.numpy()
    total = []
    for n, row, column in zip(*np.nonzero(trusted.numpy()), strict=True):
        q = _softmax(s[n, :, row, column] / temperature)
        p = (1 - share) * _softmax(t[n, :, row, column] / temperature)
        p[target[n, row, column]] += share
        total.append((p * np.log(p / q)).sum())
    assert loss.item() == pytest.approx(temperature**2 * np.mean(total), rel=1e-10)


def test_channel_wise_closed_form(maps) -> None:
    student, teacher, target = maps
    valid = target != 255
    loss = channel_wise_loss(student, teacher, valid, 4.0)
    total = []
    for n in range(2):
        seen = valid[n].numpy()
        for channel in range(4):
            q = _softmax(student.detach().numpy()[n, channel][seen] / 4)
            p = _softmax(teacher.numpy()[n, channel][seen] / 4)
            total.append((p * np.log(p / q)).sum())
    assert loss.item() == pytest.approx(16 * np.mean(total), rel=1e-10)


@pytest.mark.parametrize("trust", ["agree", "mix", "all"])
def test_a_perfect_copy_has_nothing_to_learn(maps, trust: str) -> None:
    _, teacher, target = maps
    teacher = teacher.clone().requires_grad_()
    loss = SegmentationDistillation(trust=trust, truth_share=0.0)(
        teacher, teacher.detach(), target, 0.0
    )
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert teacher.grad is not None
    assert teacher.grad.abs().max() < 1e-12


@pytest.mark.parametrize("trust", ["agree", "mix", "all"])
def test_ignored_pixels_teach_nothing(maps, trust: str) -> None:
    student, teacher, target = maps
    lesson = SegmentationDistillation(trust=trust)
    loss = lesson(student, teacher, target, 0.0)
    loss.backward()
    assert student.grad is not None
    assert not student.grad[:, :, 0].any()
    assert student.grad[:, :, 1:].any()
    wild = teacher.clone()
    wild[:, :, 0] = 1e3
    assert lesson(student, wild, target, 0.0).item() == loss.item()


def test_a_wrong_teacher_is_not_listened_to(maps) -> None:
    student, teacher, target = maps
    lesson = SegmentationDistillation(channel_weight=0.0, trust="agree")
    lesson(student, teacher, target, 0.0).backward()
    agrees = teacher.argmax(1) == target
    assert student.grad is not None
    moved = student.grad.abs().sum(1) > 0
    assert agrees.any()
    assert torch.equal(moved, agrees)


def test_mixing_moves_the_target_towards_the_label(maps) -> None:
    _, teacher, target = maps
    valid = target != 255
    onehot = torch.nn.functional.one_hot(torch.where(valid, target, 0), 4).movedim(-1, 1)
    mixed = 0.5 * teacher.softmax(1) + 0.5 * onehot
    lesson = SegmentationDistillation(
        temperature=1.0, channel_weight=0.0, trust="mix", truth_share=0.5
    )
    best = lesson(mixed.log(), teacher, target, 0.0)
    assert best.item() == pytest.approx(0, abs=1e-12)
    assert lesson(teacher, teacher, target, 0.0).item() > 0.01


def test_rare_classes_weigh_the_same_in_the_channel_wise_term() -> None:
    """The same error on a class costs the same however few pixels the class has."""
    valid = torch.ones(1, 8, 8, dtype=torch.bool)
    teacher = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    teacher[0, 0, :, :4] = 8.0  # a large region
    teacher[0, 1, 0, 0] = 8.0  # one pixel
    losses = []
    for channel in (0, 1):
        student = teacher.clone()
        student[0, channel] = 0
        losses.append(channel_wise_loss(student, teacher, valid, 1.0).item())
    assert losses[1] > losses[0] > 0


@pytest.mark.parametrize("shape", [(2, 5, 6), (0, 5, 6)])
def test_nothing_to_learn_from(shape: tuple[int, ...]) -> None:
    student = torch.randn(shape[0], 4, *shape[1:], requires_grad=True)
    teacher = torch.randn(shape[0], 4, *shape[1:])
    for trust in ("agree", "mix", "all"):
        lesson = SegmentationDistillation(trust=trust)
        loss = lesson(student, teacher, torch.full(shape, 255), 0.0)
        student.grad = None
        loss.backward()
        assert loss.item() == 0
        assert student.grad is not None
        assert not torch.as_tensor(student.grad).any()


def test_schedules() -> None:
    assert [anneal("constant", t) for t in (0, 0.5, 1)] == [1, 1, 1]
    assert [anneal("linear", t) for t in (0, 0.5, 1)] == [1, 0.5, 0]
    assert [anneal("cosine", t) for t in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    student, teacher = torch.randn(2, 1, 3, 4, 4)
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    lesson = SegmentationDistillation(trust="all", schedule="linear")
    whole = lesson(student, teacher, target, 0.0)
    assert lesson(student, teacher, target, 0.75).item() == pytest.approx(whole.item() / 4)
    assert lesson(student, teacher, target, 1.0).item() == 0


def test_depth_closed_form() -> None:
    student = torch.randn(2, 1, 4, 6, dtype=torch.float64)
    teacher = torch.randn(2, 1, 4, 6, dtype=torch.float64)
    target = torch.rand(2, 1, 4, 6, dtype=torch.float64) + 0.5
    target[0, 0, 0] = 0
    lesson = DepthDistillation(2.0, gradient_weight=0.0, tolerance=0.5)
    trust = torch.where(target > 0, torch.exp(-(teacher - target.log()).abs() / 0.5), 1)
    expected = 2.0 * (trust * (student - teacher).abs()).mean()
    assert lesson(student, teacher, target, 0.0).item() == pytest.approx(expected.item())
    plain = DepthDistillation(1.0, gradient_weight=0.0, tolerance=None)
    expected = (student - teacher).abs().mean()
    assert plain(student, teacher, target, 0.0).item() == pytest.approx(expected.item())


def test_gradient_loss() -> None:
    assert gradient_loss(torch.full((1, 1, 8, 8), 3.0)).item() == 0
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    # slope 1 across at full size, 2 at half, 4 at a quarter
    assert gradient_loss(ramp, 3).item() == pytest.approx(7)
    assert gradient_loss(torch.zeros(1, 1, 1, 1)).item() == 0
    level = DepthDistillation(0.0, gradient_weight=1.0)
    student = torch.randn(1, 1, 8, 8)
    assert level(student, student + 0.7, torch.ones(1, 1, 8, 8), 0.0).item() == pytest.approx(
        0, abs=1e-5
    )


@pytest.mark.parametrize(
    ("lesson", "options", "message"),
    [
        (SegmentationDistillation, {"trust": "some"}, "trust='some': unknown name; use one of"),
        (SegmentationDistillation, {"schedule": "step"}, "schedule='step': unknown name; use one"),
        (SegmentationDistillation, {"weight": -1}, "weight=-1: must not be negative; use 0 to"),
        (SegmentationDistillation, {"temperature": 0}, "temperature=0: must be positive; use 1"),
        (SegmentationDistillation, {"truth_share": 2}, "truth_share=2: must be from 0 to 1; use"),
        (SegmentationDistillation, {"weight": math.nan}, "weight=nan: must not be negative"),
        (DepthDistillation, {"schedule": "step"}, "schedule='step': unknown name; use one of"),
        (DepthDistillation, {"gradient_weight": -1}, "gradient_weight=-1: must not be negative"),
        (DepthDistillation, {"tolerance": 0}, "tolerance=0: must be positive; use None for no"),
    ],
)
def test_values_out_of_range(lesson, options, message: str) -> None:
    with pytest.raises(BinarizeError, match=message):
        lesson(**options)
