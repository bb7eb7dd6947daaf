"""Segmentation: loss and metrics against closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from binarize.errors import DataError, ModelError
from binarize.train import Segmentation
from binarize.train.tasks.segmentation import SegmentationMetric

CPU = torch.device("cpu")


def _labels(*shape: int, classes: int = 5, void: float = 0.2) -> torch.Tensor:
    labels = torch.randint(0, classes, shape)
    return labels.masked_fill(torch.rand(shape) < void, 255)


def test_loss_is_the_mean_over_pixels_that_count() -> None:
    logits = torch.randn(2, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    target = _labels(2, 6, 7)
    loss = Segmentation(5).loss(logits, target)
    expected, count = 0.0, 0
    for n, row, column in np.ndindex(2, 6, 7):
        label = int(target[n, row, column])
        if label != 255:
            x = logits[n, :, row, column].tolist()
            expected += math.log(sum(math.exp(v) for v in x)) - x[label]
            count += 1
    assert loss.item() == pytest.approx(expected / count, rel=1e-12)


def test_class_weights() -> None:
    logits, target = torch.randn(2, 3, 4, 4, dtype=torch.float64), _labels(2, 4, 4, classes=3)
    task = Segmentation(3, class_weights=[1.0, 2.0, 0.5])
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits, target, weights, ignore_index=255)
    assert task.loss(logits, target).item() == pytest.approx(expected.item(), rel=1e-12)
    with pytest.raises(DataError, match="must be 3 numbers, none negative; give one weight per"):
        Segmentation(3, class_weights=[1.0, 2.0])


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 3.0, 1.0, 1.0]])
@pytest.mark.parametrize("shape", [(2, 4, 5), (0, 4, 5)])
def test_nothing_to_learn_from(shape: tuple[int, ...], weights: list[float] | None) -> None:
    """A batch of ignored pixels only, and an empty batch: no loss, no gradient, no metric."""
    logits = torch.randn(shape[0], 5, *shape[1:], requires_grad=True)
    target = torch.full(shape, 255)
    task = Segmentation(5, class_weights=weights)
    task.check(target)
    loss = task.loss(logits, target)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    metric = task.metric(CPU)
    task.update(metric, logits, target)
    values = metric.compute()
    assert values["mIoU"].isnan()
    assert values["pixAcc"].isnan()
    full = torch.randint(0, 5, (1, 4, 5))
    task.update(metric, torch.nn.functional.one_hot(full, 5).movedim(-1, 1).float(), full)
    assert metric.compute()["mIoU"] == 1


def test_metrics_against_brute_force() -> None:
    metric = SegmentationMetric(6)
    guesses, truths = [], []
    for batch in (3, 1, 2):
        guess = torch.randint(0, 5, (batch, 8, 9))  # class 5 is neither in truth nor guessed
        truth = _labels(batch, 8, 9)
        guess[truth == 4] = 4
        metric.update(guess, truth)
        guesses.append(guess.flatten())
        truths.append(truth.flatten())
    guess, truth = torch.cat(guesses), torch.cat(truths)
    guess, truth = guess[truth != 255], truth[truth != 255]
    iou = []
    for label in range(5):
        both = ((guess == label) & (truth == label)).sum().item()
        either = ((guess == label) | (truth == label)).sum().item()
        iou.append(both / either)
    values = metric.compute()
    assert values["IoU"][:5].tolist() == pytest.approx(iou, rel=1e-12)
    assert values["IoU"][5].isnan()
    assert values["mIoU"].item() == pytest.approx(sum(iou) / 5, rel=1e-12)
    assert values["pixAcc"].item() == pytest.approx((guess == truth).double().mean().item())


def test_miou_is_of_the_whole_set_and_not_a_mean_over_batches() -> None:
    metric = SegmentationMetric(2)
    metric.update(torch.tensor([[[0, 0, 0, 1]]]), torch.tensor([[[0, 0, 0, 0]]]))
    metric.update(torch.tensor([[[1, 1]]]), torch.tensor([[[1, 1]]]))
    # class 0: 3 of 4; class 1: 2 of 3
    assert metric.compute()["mIoU"].item() == pytest.approx((3 / 4 + 2 / 3) / 2)


def test_a_class_guessed_where_there_is_none_counts() -> None:
    metric = SegmentationMetric(3)
    metric.update(torch.tensor([[[0, 2]]]), torch.tensor([[[0, 0]]]))
    assert metric.compute()["mIoU"].item() == pytest.approx(1 / 4)


def test_outputs_of_all_kinds_are_understood() -> None:
    task = Segmentation(3)
    logits = torch.randn(2, 3, 8, 10)
    for output in (logits, (logits, torch.zeros(2)), {"aux": logits * 0, "out": logits}, [logits]):
        assert torch.equal(task.prepare(output, (8, 10)), logits)
        assert torch.equal(task.decode(output), logits.argmax(1))
    assert task.prepare(logits.bfloat16(), (8, 10)).dtype == torch.float32
    assert task.prepare(logits[:, :, ::2, ::2], (8, 10)).shape == (2, 3, 8, 10)
    assert task.decode(logits, (16, 20)).shape == (2, 16, 20)


def test_what_does_not_fit() -> None:
    task = Segmentation(3)
    with pytest.raises(ModelError) as caught:
        task.prepare(torch.zeros(1, 5, 4, 4), (4, 4))
    assert str(caught.value) == (
        "num_classes=3: the network returns 5 channels; "
        "build the network with as many classes as the data has"
    )
    with pytest.raises(ModelError, match=r"output=\(4, 4\): the network must return a tensor of"):
        task.prepare(torch.zeros(4, 4), (4, 4))
    with pytest.raises(DataError) as refused:
        task.check(torch.tensor([[[0, 2, 255, 3]]]))
    assert str(refused.value) == (
        "label=3: must be from 0 to 2, or 255 (ignored); map it to a class or to the ignored label"
    )
    with pytest.raises(DataError, match="label=-1: must be from 0 to 2"):
        task.check(torch.tensor([[[0, -1]]]))
    with pytest.raises(DataError, match=r"mask='torch.int64 \(1, 1, 4, 4\)': must be class"):
        task.check(torch.zeros(1, 1, 4, 4, dtype=torch.int64))
    with pytest.raises(DataError, match=r"mask='torch.float32 \(1, 4, 4\)': must be class"):
        task.check(torch.zeros(1, 4, 4))
    Segmentation(3, ignore_index=-1).check(torch.tensor([[[0, -1]]]))


def test_only_the_number_of_classes_goes_without_its_name() -> None:
    assert Segmentation(num_classes=3, ignore_index=7).ignore_index == 7
    with pytest.raises(TypeError):
        Segmentation(3, 7)  # type: ignore[misc]
