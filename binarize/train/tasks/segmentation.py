"""Semantic segmentation: cross-entropy, pixAcc and mIoU, distillation.

One class has binary cross-entropy, and a teacher's errors are not copied.

Shape legend: N samples, C classes, H, W rows and columns; logits (N, C, H, W).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from binarize.errors import BinarizeError, DataError
from binarize.train.batches import dense_output, resize_to, wide
from binarize.train.checks import check_name, check_not_negative, check_positive
from binarize.train.distillation.schedule import SCHEDULES, anneal
from binarize.train.tasks.classes import (
    BALANCED,
    ClassWeights,
    check_outputs,
    check_weights,
    count_classes,
    known_classes,
    weigh_classes,
)

__all__ = [
    "Segmentation",
    "SegmentationDistillation",
    "SegmentationMetric",
    "binary_loss",
    "channel_wise_loss",
    "pixel_wise_loss",
]


def binary_loss(
    logits: Tensor, target: Tensor, valid: Tensor, weights: Tensor | None, smoothing: float = 0.0
) -> Tensor:
    """Mean binary cross-entropy between logits and targets of 0 or 1 over the values that count.

    Args:
        logits: Any shape.
        target: 0 or 1, same shape; anything where not valid.
        valid: Which values count, boolean.
        weights: Weight of each value, or None.
        smoothing: Share of the target spread evenly over 0 and 1.

    Returns:
        Scalar; 0 when nothing counts.
    """
    truth = torch.where(valid, target, 0).to(logits.dtype)
    truth = truth * (1 - smoothing) + smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, truth, weight=weights, reduction="none")
    total = torch.where(valid, losses, 0).sum()
    if weights is None:
        return total / valid.sum().clamp(min=1)
    norm = torch.where(valid, weights, 0).sum()
    return total / norm.clamp(min=torch.finfo(logits.dtype).tiny)


class SegmentationMetric(MulticlassConfusionMatrix):
    """Pixel accuracy and mean intersection over union, from one confusion matrix.

    The matrix is summed over the whole set (and over all processes) before dividing.
    IoU_c = TP_c / (TP_c + FP_c + FN_c); mIoU is its mean over the classes that occur in the
    targets or in the predictions. Ignored pixels are not counted.

    ``compute`` returns ``pixAcc``, ``mIoU`` and ``IoU`` (C,), NaN where a class does not occur.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False)

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Return the metrics of all pixels so far; NaN without any."""
        matrix = self.confmat.to(wide(self.confmat.device))
        hits, truth, guessed = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        iou = hits / (truth + guessed - hits)
        return {"mIoU": iou.nanmean(), "pixAcc": hits.sum() / matrix.sum(), "IoU": iou}


class Segmentation:
    """Semantic segmentation with masks of class indices.

    The network returns logits (N, C, H, W); other sizes are resized bilinearly to the target's.
    The loss is the mean cross-entropy over all pixels that are not ignored, weighted by
    ``class_weights`` when given.

    With one class the network returns one channel, the logit of label 1 against label 0, the
    background: the loss is the binary cross-entropy, label 1 is predicted where the logit is above
    0, and the metrics are those of both labels.

    Args:
        num_classes: C; None: the data set's, else the network's number of channels.
        ignore_index: Label of pixels that do not count.
        class_weights: One weight per class; with one class two, the background first. "balanced":
            from the class frequencies of the training data, if it has ``class_counts``, to the
            power −``balance`` of the trainer. None: equal weights.
        label_smoothing: Share of the target spread evenly over all classes.

    Raises:
        DataError: The class weights are not one positive number per class.
    """

    name = "segmentation"
    target = "mask"
    monitor = "mIoU"
    higher_is_better = True

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        ignore_index: int = 255,
        class_weights: ClassWeights = None,
        label_smoothing: float = 0.0,
    ) -> None:
        if isinstance(class_weights, str):
            check_name([BALANCED], class_weights=class_weights)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self._given = class_weights
        self._weights: Tensor | None = None
        self._weigh(class_weights)

    def _weigh(self, weights: ClassWeights) -> None:
        if self.num_classes is None or weights is None or isinstance(weights, str):
            self._weights = None
        else:
            self._weights = check_weights(weights, self.labels)

    @property
    def labels(self) -> int:
        """Number of labels: C, or 2 with one class.

        Raises:
            DataError: The number of classes is not known yet.
        """
        return max(2, known_classes(self.num_classes))

    def complete(
        self, dataset: Any, output: Callable[[], Any], *, balance: float = 0.0
    ) -> Segmentation:
        """Return the task with the number and weights of classes; see ``Task``."""
        balanced = self._given == BALANCED if isinstance(self._given, str) else False
        if self.num_classes is not None and not (balanced and balance):
            return self
        made = copy.copy(self)
        made.num_classes = self.num_classes or count_classes(
            dataset, lambda: dense_output(output()).shape[1]
        )
        found = weigh_classes(dataset, made.num_classes, balance) if balanced and balance else None
        made._weigh(found if balanced else self._given)
        return made

    def prepare(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Return the logits (N, C, H, W) at ``size``, float32 or better.

        Raises:
            ModelError: The network returns another number of classes.
        """
        logits = dense_output(output)
        check_outputs(logits.shape[1], self.num_classes)
        return resize_to(logits, size)

    def check(self, target: Tensor) -> None:
        """Reject labels that are neither a class nor ignored.

        Raises:
            DataError: There is such a label, or the mask is not an integer tensor (N, H, W).
        """
        if target.ndim != 3 or target.is_floating_point():
            raise DataError(
                "mask",
                f"{target.dtype} {tuple(target.shape)}",
                "must be class indices of shape (N, H, W)",
                "convert with mask.long() and remove the channel dimension",
            )
        target = target.long()  # any integer type, without wrap-around
        bad = (target < 0) | (target >= self.labels)
        bad &= target != self.ignore_index
        if bool(bad.any()):
            raise DataError(
                "label",
                int(target[bad][0]),
                f"must be from 0 to {self.labels - 1}, or {self.ignore_index} (ignored)",
                "map it to a class or to the ignored label",
            )

    def loss(self, prepared: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy over the pixels that count; 0 without any."""
        weights = self._weights
        if weights is not None:
            weights = weights.to(prepared.device, prepared.dtype)
        target = target.long()
        valid = target != self.ignore_index
        if self.num_classes == 1:
            chosen = None if weights is None else weights[torch.where(valid, target, 0)]
            return binary_loss(prepared[:, 0], target, valid, chosen, self.label_smoothing)
        total = F.cross_entropy(
            prepared,
            target,
            weight=weights,
            ignore_index=self.ignore_index,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        if weights is None:
            return total / valid.sum().clamp(min=1)
        norm = torch.where(valid, weights[torch.where(valid, target, 0)], 0).sum()
        return total / norm.clamp(min=torch.finfo(prepared.dtype).tiny)

    def metric(self, device: torch.device) -> Metric:
        """Return an empty :class:`SegmentationMetric`."""
        return SegmentationMetric(self.labels, self.ignore_index).to(device)

    def update(self, metric: Metric, prepared: Tensor, target: Tensor) -> None:
        """Count a batch."""
        metric.update(_labels(prepared), target.long())

    def decode(self, output: Any, size: tuple[int, int] | None = None) -> Tensor:
        """Return the class of each pixel, int64 (N, H, W)."""
        logits = dense_output(output)
        return _labels(resize_to(logits, size or (logits.shape[-2], logits.shape[-1])))

    def distillation(self) -> SegmentationDistillation:
        """Return the default distillation loss."""
        return SegmentationDistillation(ignore_index=self.ignore_index)


def _labels(logits: Tensor) -> Tensor:
    """Return the label of each pixel: the largest logit; for one logit, 1 where it is above 0."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


_TRUST = ("agree", "mix", "all")


def pixel_wise_loss(
    student: Tensor,
    teacher: Tensor,
    trusted: Tensor,
    temperature: float,
    truth: Tensor | None,
    share: float,
) -> Tensor:
    """T² · mean over trusted pixels of KL(p_T ‖ q_T) (Hinton, Vinyals, Dean 2015, section 2).

    p is the teacher's distribution at temperature T, or with ``truth`` the mixture
    (1 − share)·p + share·onehot(truth).

    Args:
        student: Logits.
        teacher: Logits, same shape.
        trusted: Boolean (N, H, W).
        temperature: T.
        truth: Labels (N, H, W); read where trusted only.
        share: Weight of the label in the mixture.

    Returns:
        Scalar; 0 when no pixel is trusted.
    """
    log_q = F.log_softmax(student / temperature, 1)
    log_p = F.log_softmax(teacher / temperature, 1)
    p = log_p.exp()
    if truth is None or share == 0:
        divergence = (p * (log_p - log_q)).sum(1)
    else:
        index = torch.where(trusted, truth, 0).unsqueeze(1)
        p = (1 - share) * p
        p = p.scatter_add(1, index, torch.full_like(p[:, :1], share))
        divergence = (torch.xlogy(p, p) - p * log_q).sum(1)
    total = torch.where(trusted, divergence, 0).sum()
    return temperature**2 * total / trusted.sum().clamp(min=1)


def channel_wise_loss(
    student: Tensor, teacher: Tensor, valid: Tensor, temperature: float = 4.0
) -> Tensor:
    """Channel-wise distillation (Shu, Liu, Gao, Yan, Shen 2021, Eq. 3 to 5).

    Each channel becomes a distribution over the positions, softmax(x/T), and the loss is
    T² times the mean over samples and channels of KL(teacher ‖ student). Every class has the same
    weight, however few pixels it has. Invalid positions are excluded from both.

    Args:
        student: Logits.
        teacher: Logits, same shape.
        valid: Boolean (N, H, W).
        temperature: T.

    Returns:
        Scalar; samples without a valid position count as 0.
    """
    void = ~valid.flatten(1).unsqueeze(1)
    # A large negative number instead of −inf: a sample without a valid position stays finite.
    log_q, log_p = (
        F.log_softmax((x / temperature).flatten(2).masked_fill(void, -1e4), 2)
        for x in (student, teacher)
    )
    divergence = (log_p.exp() * (log_p - log_q)).masked_fill(void, 0).sum(2)
    return temperature**2 * divergence.sum() / max(1, divergence.numel())


class SegmentationDistillation:
    """A teacher's logits as a second target, with safeguards.

    Plain distillation on every pixel was measured to hurt: it passes on the teacher's errors on
    rare classes and its arbitrary predictions in ignored regions. Hence: ignored pixels never
    count, the pixel-wise term trusts the teacher only where it is reliable (``trust``), the
    channel-wise term weights all classes equally, and the weight decays to zero towards the end
    of training, where only the labels count.

    Images without labels count with every pixel, and there the teacher is fully trusted.

    Loss = f(t) · (``weight`` · pixel-wise + ``channel_weight`` · channel-wise), with f the
    ``schedule``. The cross-entropy with the labels is added by the trainer.

    Args:
        weight: Weight of the pixel-wise term.
        temperature: Its temperature.
        channel_weight: Weight of the channel-wise term; 0 turns it off.
        channel_temperature: Its temperature.
        trust: "agree": only pixels where the teacher's class is the label; "mix": all labelled
            pixels, with the label mixed in by ``truth_share``; "all": all labelled pixels.
        truth_share: Weight of the label in "mix".
        schedule: "cosine", "linear" or "constant".
        ignore_index: Label of pixels that do not count.
        multilabel: Treat each class as a separate binary problem.

    Raises:
        BinarizeError: A value is out of range or a name unknown.
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 2.0,
        *,
        channel_weight: float = 0.5,
        channel_temperature: float = 4.0,
        trust: str = "agree",
        truth_share: float = 0.5,
        schedule: str = "cosine",
        ignore_index: int = 255,
        multilabel: bool = False,
    ) -> None:
        check_name(_TRUST, trust=trust)
        check_name(SCHEDULES, schedule=schedule)
        check_not_negative(weight=weight, channel_weight=channel_weight)
        check_positive(
            "use 1 for no softening",
            temperature=temperature,
            channel_temperature=channel_temperature,
        )
        if not 0 <= truth_share <= 1:
            raise BinarizeError("truth_share", truth_share, "must be from 0 to 1", "use e.g. 0.5")
        self.weight = weight
        self.temperature = temperature
        self.channel_weight = channel_weight
        self.channel_temperature = channel_temperature
        self.trust = trust
        self.truth_share = truth_share if trust == "mix" else 0.0
        self.schedule = schedule
        self.ignore_index = ignore_index
        self.multilabel = multilabel

    def __call__(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, done: float
    ) -> Tensor:
        """Return the scalar loss at training progress ``done``.

        Args:
            student: Logits.
            teacher: Logits, same shape.
            target: Labels (N, H, W), or (N, C, H, W) with several labels per pixel; None for images
                without labels.
            done: Training progress, from 0 to 1.
        """
        if self.multilabel or (target is not None and target.ndim == 4):
            student, teacher = (x.flatten(0, 1).unsqueeze(1) for x in (student, teacher))
            target = None if target is None else target.flatten(0, 1)
        factor = anneal(self.schedule, done)
        loss = student.new_zeros(())
        if factor == 0:
            return loss
        if target is None:
            target = student.new_zeros(student[:, 0].shape, dtype=torch.long)
            valid = torch.ones_like(target, dtype=torch.bool)
            trust, share = "all", 0.0
        else:
            target = target.long()
            valid = target != self.ignore_index
            trust, share = self.trust, self.truth_share
        if self.weight > 0:
            pair = [_two_classes(x) if x.shape[1] == 1 else x for x in (student, teacher)]
            trusted = valid
            if trust == "agree":
                trusted = valid & (pair[1].argmax(1) == target)
            loss = loss + factor * self.weight * pixel_wise_loss(
                pair[0], pair[1], trusted, self.temperature, target, share
            )
        if self.channel_weight > 0:
            loss = loss + factor * self.channel_weight * channel_wise_loss(
                student, teacher, valid, self.channel_temperature
            )
        return loss


def _two_classes(logits: Tensor) -> Tensor:
    """Return two logits, background and class, whose softmax is the sigmoid of the one logit."""
    return torch.cat([torch.zeros_like(logits), logits], 1)
