"""One class, several labels, and masks of any integer type."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from binarize.errors import DataError, ModelError
from binarize.train import MultiLabel, Segmentation, SegmentationDistillation, Trainer, open_task

CPU = torch.device("cpu")


def one_class(*shape: int) -> torch.Tensor:
    return torch.randint(0, 2, shape).masked_fill(torch.rand(shape) < 0.2, 255)


def test_one_class_is_two_labels_by_one_logit() -> None:
    """The same loss, labels, metrics and distillation as a softmax over (0, x)."""
    x, teacher = torch.randn(2, 3, 1, 6, 7, dtype=torch.float64)
    target = one_class(3, 6, 7)
    one, two = Segmentation(1), Segmentation(2)
    pair, teacher_pair = (torch.cat([torch.zeros_like(v), v], 1) for v in (x, teacher))
    assert one.loss(x, target).item() == pytest.approx(two.loss(pair, target).item(), rel=1e-12)
    weights = [0.5, 2.0]
    assert Segmentation(1, class_weights=weights).loss(x, target).item() == pytest.approx(
        Segmentation(2, class_weights=weights).loss(pair, target).item(), rel=1e-12
    )
    smooth = {"label_smoothing": 0.1}
    assert Segmentation(1, **smooth).loss(x, target).item() == pytest.approx(
        Segmentation(2, **smooth).loss(pair, target).item(), rel=1e-12
    )
    assert torch.equal(one.decode(x), two.decode(pair))
    assert one.decode(x).any()
    values = []
    for task, logits in ((one, x), (two, pair)):
        metric = task.metric(CPU)
        task.update(metric, logits, target)
        values.append(metric.compute())
    assert torch.equal(values[0]["IoU"], values[1]["IoU"])
    assert values[0]["IoU"].shape == (2,)
    for trust in ("agree", "mix", "all"):
        distil = SegmentationDistillation(channel_weight=0, trust=trust)
        got = distil(x, teacher, target, 0.0).item()
        assert got == pytest.approx(distil(pair, teacher_pair, target, 0.0).item(), rel=1e-12)
        assert got > 0


def test_one_class_refuses_other_labels_and_channels() -> None:
    task = Segmentation(1)
    with pytest.raises(DataError, match="label=2: must be from 0 to 1, or 255"):
        task.check(torch.full((1, 2, 2), 2))
    with pytest.raises(ModelError, match="num_classes=1: the network returns 2 channels"):
        task.prepare(torch.zeros(1, 2, 2, 2), (2, 2))
    with pytest.raises(DataError, match="must be 2 numbers, none negative"):
        Segmentation(1, class_weights=[1.0])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("classes", [1, 3])
def test_masks_of_any_integer_type(kind: torch.dtype, classes: int) -> None:
    logits = torch.randn(2, classes, 5, 6)
    ignore = 255 if kind != torch.int8 else -1
    target = one_class(2, 5, 6)
    wanted = Segmentation(classes).loss(logits, target)
    given = target.masked_fill(target == 255, ignore).to(kind)
    task = Segmentation(classes, ignore_index=ignore)
    task.check(given)
    assert torch.equal(task.loss(logits, given), wanted)
    metric = task.metric(CPU)
    task.update(metric, logits, given)
    assert metric.confmat.sum() == (target != 255).sum()
    teacher = torch.randn_like(logits)
    assert torch.equal(
        SegmentationDistillation(ignore_index=ignore)(logits, teacher, given, 0.0),
        SegmentationDistillation()(logits, teacher, target, 0.0),
    )


def test_a_label_does_not_wrap_round() -> None:
    with pytest.raises(DataError, match="label=200"):
        Segmentation(3, ignore_index=-56).check(torch.full((1, 2, 2), 200, dtype=torch.uint8))


def test_several_labels_against_closed_forms() -> None:
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = one_class(2, 3, 4, 5)
    valid = target != 255
    task = MultiLabel(3)
    task.check(target)
    loss = task.loss(logits, target)
    wanted = F.binary_cross_entropy_with_logits(logits[valid], target[valid].double())
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    metric = task.metric(CPU)
    task.update(metric, logits[:1], target[:1])
    task.update(metric, logits[1:], target[1:])
    guess = task.decode(logits)
    assert guess.shape == target.shape
    values = metric.compute()
    for c in range(3):
        hit, truth = guess[:, c][valid[:, c]], target[:, c][valid[:, c]]
        iou = ((hit & truth).sum() / (hit | truth).sum()).item()
        assert values["IoU"][c].item() == pytest.approx(iou)
    assert values["mIoU"].item() == pytest.approx(values["IoU"].mean().item())
    assert values["pixAcc"].item() == pytest.approx((guess == target)[valid].double().mean().item())
    empty = torch.full_like(target, 255)
    assert task.loss(logits, empty).item() == 0
    weighted = MultiLabel(3, class_weights=[1, 0, 0])
    only = F.binary_cross_entropy_with_logits(
        logits[:, 0][valid[:, 0]], target[:, 0][valid[:, 0]].double()
    )
    assert weighted.loss(logits, target).item() == pytest.approx(only.item(), rel=1e-12)


def test_several_labels_refuse_what_they_are_not() -> None:
    task = open_task("multilabel", num_classes=3)
    with pytest.raises(DataError, match=r"must be whole numbers of shape \(N, 3, H, W\)"):
        task.check(torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(DataError, match="label=2: must be 0 or 1"):
        task.check(torch.full((1, 3, 2, 2), 2))
    task.check(torch.ones(1, 3, 2, 2, dtype=torch.bool))
    with pytest.raises(ModelError, match="num_classes=3: the network returns 2 channels"):
        task.prepare(torch.zeros(1, 2, 2, 2), (2, 2))


def test_several_labels_distil_class_by_class() -> None:
    student, teacher = torch.randn(2, 2, 3, 4, 5, dtype=torch.float64)
    target = one_class(2, 3, 4, 5)
    distil = SegmentationDistillation(trust="all", channel_weight=0)
    total = torch.zeros((), dtype=torch.float64)
    for c in range(3):
        valid = (target[:, c] != 255).sum()
        part = distil(student[:, c : c + 1], teacher[:, c : c + 1], target[:, c], 0.0)
        total = total + part * valid
    got = distil(student, teacher, target, 0.0)
    assert got.item() == pytest.approx((total / (target != 255).sum()).item(), rel=1e-12)


@pytest.mark.parametrize("task", ["segmentation", "multilabel"])
def test_a_network_learns_them(task: str) -> None:
    """What is bright is class 1: one convolution of one pixel can tell."""
    images = torch.randn(8, 3, 6, 6)
    masks = (images[:, :1] > 0.3).long()
    if task == "segmentation":
        masks, classes = masks[:, 0], 1
    else:
        masks, classes = torch.cat([masks, 1 - masks], 1), 2
    network, teacher = nn.Conv2d(3, classes, 1), nn.Conv2d(3, classes, 1)
    with torch.no_grad():  # a teacher that knows
        teacher.weight.zero_()[:, 0, 0, 0] = torch.tensor([5.0, -5.0])[:classes]
        teacher.bias.copy_(torch.tensor([-1.5, 1.5])[:classes])
    loader = DataLoader(TensorDataset(images, masks.to(torch.uint8)), 4)
    trainer = Trainer(
        network, task=task, num_classes=classes, epochs=40, lr=0.3, progress=False,
        teacher=teacher,
    )  # fmt: skip
    trainer.fit(loader)
    assert trainer.evaluate(loader)["mIoU"] > 0.9
