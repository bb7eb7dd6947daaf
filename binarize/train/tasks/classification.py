"""Classification: cross-entropy, top-1 and top-5 accuracy.

Shape legend: N samples, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from binarize.errors import BinarizeError, DataError
from binarize.train.batches import class_scores, wide
from binarize.train.checks import check_name, check_not_negative, check_positive
from binarize.train.distillation.schedule import SCHEDULES, anneal
from binarize.train.tasks.classes import check_outputs, count_classes, known_classes

__all__ = ["Classification", "ClassificationDistillation", "ClassificationMetric"]


class ClassificationMetric(Metric):
    """Fraction of images whose class is predicted first (``top1``) or in the top five (``top5``).

    With fewer than five classes ``top5`` looks at all of them. Ignored images are not counted.

    Args:
        ignore_index: Label of images that do not count.
    """

    full_state_update = False
    first: Tensor
    five: Tensor
    count: Tensor

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        for name in ("first", "five", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Count a batch of logits (N, C) and labels (N,)."""
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        right = (ranked == label.unsqueeze(1)) & (label != self.ignore_index).unsqueeze(1)
        self.first += right[:, 0].sum()
        self.five += right.sum()
        self.count += (label != self.ignore_index).sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all images so far; NaN without any."""
        count = self.count.to(wide(self.count.device))
        return {"top1": self.first / count, "top5": self.five / count}


class ClassificationDistillation:
    """A teacher's logits as a second target (Hinton, Vinyals, Dean 2015, section 2).

    Loss = f(t) · ``weight`` · T² · mean over images of KL(teacher ‖ student) at temperature T, with
    f the ``schedule``.

    Args:
        weight: Weight of the loss.
        temperature: T.
        schedule: "constant", "linear" or "cosine".
        ignore_index: Label of images that do not count.

    Raises:
        BinarizeError: A value is out of range or the schedule unknown.
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 2.0,
        *,
        schedule: str = "constant",
        ignore_index: int = -100,
    ) -> None:
        check_name(SCHEDULES, schedule=schedule)
        check_not_negative(weight=weight)
        check_positive("use 1 for no softening", temperature=temperature)
        self.weight = weight
        self.temperature = temperature
        self.schedule = schedule
        self.ignore_index = ignore_index

    def __call__(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, done: float
    ) -> Tensor:
        """Return the scalar loss at training progress ``done``.

        Without labels (``target`` None) every image counts.
        """
        factor = anneal(self.schedule, done) * self.weight
        counts = student.new_ones(len(student), dtype=torch.bool)
        if target is not None:
            counts = target != self.ignore_index
        log_q, log_p = (F.log_softmax(x / self.temperature, 1) for x in (student, teacher))
        divergence = (log_p.exp() * (log_p - log_q)).sum(1)
        total = torch.where(counts, divergence, 0).sum() / counts.sum().clamp(min=1)
        return factor * self.temperature**2 * total


class Classification:
    """Image classification from logits (N, C).

    The loss is the mean cross-entropy over images that are not ignored.

    Args:
        num_classes: C; None: the data set's, else the network's number of outputs.
        ignore_index: Label of images that do not count.
        label_smoothing: Share of the target spread evenly over all classes.
        target: Key of the labels in batches that are mappings.

    Raises:
        BinarizeError: The smoothing is not from 0 to 1.
    """

    name = "classification"
    monitor = "top1"
    higher_is_better = True

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        target: str = "label",
    ) -> None:
        if not 0 <= label_smoothing <= 1:
            raise BinarizeError(
                "label_smoothing", label_smoothing, "must be from 0 to 1", "use e.g. 0.1"
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.target = target

    @property
    def labels(self) -> int:
        """Number of classes.

        Raises:
            DataError: It is not known yet.
        """
        return known_classes(self.num_classes)

    def complete(
        self, dataset: Any, output: Callable[[], Any], *, balance: float = 0.0
    ) -> Classification:
        """Return the task with its number of classes; see ``Task``."""
        if self.num_classes is not None:
            return self
        made = copy.copy(self)
        made.num_classes = count_classes(dataset, lambda: class_scores(output()).shape[1])
        return made

    def prepare(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Return the logits (N, C), float32 or better.

        Raises:
            ModelError: The network returns another number of classes, or no logits.
        """
        logits = class_scores(output)
        check_outputs(logits.shape[1], self.num_classes, "values")
        return logits.float() if logits.element_size() < 4 else logits

    def check(self, target: Tensor) -> None:
        """Reject labels that are neither a class nor ignored.

        Raises:
            DataError: There is such a label, or labels are not whole numbers of shape (N,).
        """
        if target.ndim != 1 or target.is_floating_point():
            raise DataError(
                "label",
                f"{target.dtype} {tuple(target.shape)}",
                "must be class indices of shape (N,)",
                "convert with label.long(), one number per image",
            )
        bad = ((target < 0) | (target >= self.labels)) & (target != self.ignore_index)
        if bool(bad.any()):
            raise DataError(
                "label",
                int(target[bad][0]),
                f"must be from 0 to {self.labels - 1}, or {self.ignore_index} (ignored)",
                "map it to a class",
            )

    def loss(self, prepared: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy over the images that count; 0 without any."""
        total = F.cross_entropy(
            prepared,
            target.long(),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return total / (target != self.ignore_index).sum().clamp(min=1)

    def metric(self, device: torch.device) -> Metric:
        """Return an empty :class:`ClassificationMetric`."""
        return ClassificationMetric(self.ignore_index).to(device)

    def update(self, metric: Metric, prepared: Tensor, target: Tensor) -> None:
        """Count a batch."""
        metric.update(prepared, target)

    def decode(self, output: Any, size: tuple[int, int] | None = None) -> Tensor:
        """Return the class of each image, int64 (N,)."""
        return class_scores(output).argmax(1)

    def distillation(self) -> ClassificationDistillation:
        """Return the default distillation loss."""
        return ClassificationDistillation(ignore_index=self.ignore_index)
