"""Several labels per pixel: binary cross-entropy for each class.

Shape legend: N samples, C classes, H, W rows and columns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from binarize.errors import DataError
from binarize.train.batches import dense_output, resize_to, wide
from binarize.train.tasks.classes import check_outputs, check_weights, count_classes, known_classes
from binarize.train.tasks.segmentation import SegmentationDistillation, binary_loss

__all__ = ["MultiLabel", "MultiLabelMetric"]


class MultiLabelMetric(Metric):
    """Intersection over union of each class, and the share of correct predictions.

    Counts are summed over the whole set and all processes before dividing.
    IoU_c = TP_c / (TP_c + FP_c + FN_c); ``mIoU`` is its mean over the classes that occur in the
    targets or in the predictions. Ignored pixels are not counted.
    """

    full_state_update = False
    both: Tensor
    either: Tensor
    right: Tensor
    counted: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        for name in ("both", "either", "right", "counted"):
            zero = torch.zeros(num_classes, dtype=torch.int64)
            self.add_state(name, zero, dist_reduce_fx="sum")

    def update(self, guess: Tensor, target: Tensor) -> None:
        """Count a batch of booleans (N, C, H, W) and targets of the same shape."""
        valid = target != self.ignore_index
        guess, truth = guess & valid, (target == 1) & valid
        dims = (0, 2, 3)
        self.both += (guess & truth).sum(dims)
        self.either += (guess | truth).sum(dims)
        self.right += ((guess == truth) & valid).sum(dims)
        self.counted += valid.sum(dims)

    def compute(self) -> dict[str, Tensor]:
        """Return ``mIoU``, ``pixAcc`` and ``IoU`` (C,); NaN where nothing was counted."""
        kind = wide(self.both.device)
        iou = self.both.to(kind) / self.either
        right = self.right.sum().to(kind) / self.counted.sum()
        return {"mIoU": iou.nanmean(), "pixAcc": right, "IoU": iou}


class MultiLabel:
    """Segmentation where a pixel may have several classes, or none.

    The network returns logits (N, C, H, W); a class is predicted where its logit is above 0.
    Targets are 0 or 1 for each class, (N, C, H, W) of any integer type or boolean. The loss is
    the mean binary cross-entropy over all values that are not ignored.

    Args:
        num_classes: C; None: the data set's, else the network's number of channels.
        ignore_index: Value that does not count.
        class_weights: One weight per class.

    Raises:
        DataError: The class weights are not one number per class.
    """

    name = "multilabel"
    target = "mask"
    monitor = "mIoU"
    higher_is_better = True

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        ignore_index: int = 255,
        class_weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self._given = class_weights
        self._weigh()

    def _weigh(self) -> None:
        self._weights: Tensor | None = None
        if self.num_classes is not None and self._given is not None:
            self._weights = check_weights(self._given, self.num_classes).view(1, -1, 1, 1)

    @property
    def labels(self) -> int:
        """Number of classes.

        Raises:
            DataError: It is not known yet.
        """
        return known_classes(self.num_classes)

    def complete(
        self, dataset: Any, output: Callable[[], Any], *, balance: float = 0.0
    ) -> MultiLabel:
        """Return the task with its number of classes; see ``Task``."""
        if self.num_classes is not None:
            return self
        made = copy.copy(self)
        made.num_classes = count_classes(dataset, lambda: dense_output(output()).shape[1])
        made._weigh()
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
        """Reject targets that are not 0, 1 or ignored, one for each class.

        Raises:
            DataError: There is another value, or the shape is not (N, C, H, W).
        """
        shape = tuple(target.shape)
        if target.ndim != 4 or shape[1] != self.labels or target.is_floating_point():
            raise DataError(
                "mask",
                f"{target.dtype} {shape}",
                f"must be whole numbers of shape (N, {self.num_classes}, H, W), 0 or 1 for each "
                "class",
                "convert with mask.long(), with one channel per class",
            )
        target = target.long()
        bad = (target != 0) & (target != 1) & (target != self.ignore_index)
        if bool(bad.any()):
            raise DataError(
                "label",
                int(target[bad][0]),
                f"must be 0 or 1, or {self.ignore_index} (ignored)",
                "mark a class with 1",
            )

    def loss(self, prepared: Tensor, target: Tensor) -> Tensor:
        """Return the mean binary cross-entropy over the values that count; 0 without any."""
        target = target.long()
        weights = self._weights
        if weights is not None:
            weights = weights.to(prepared.device, prepared.dtype).expand_as(prepared)
        return binary_loss(prepared, target, target != self.ignore_index, weights)

    def metric(self, device: torch.device) -> Metric:
        """Return an empty :class:`MultiLabelMetric`."""
        return MultiLabelMetric(self.labels, self.ignore_index).to(device)

    def update(self, metric: Metric, prepared: Tensor, target: Tensor) -> None:
        """Count a batch."""
        metric.update(prepared > 0, target.long())

    def decode(self, output: Any, size: tuple[int, int] | None = None) -> Tensor:
        """Return where each class is, int64 (N, C, H, W) of 0 and 1."""
        logits = dense_output(output)
        return (resize_to(logits, size or (logits.shape[-2], logits.shape[-1])) > 0).long()

    def distillation(self) -> SegmentationDistillation:
        """Return the default distillation loss."""
        return SegmentationDistillation(ignore_index=self.ignore_index, multilabel=True)
