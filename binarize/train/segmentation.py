"""Semantic segmentation: cross-entropy, pixAcc and mIoU; binary cross-entropy for one class.

Shape legend: N samples, C classes, H, W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from binarize.errors import DataError, ModelError
from binarize.train.outputs import dense_output, resize_to
from binarize.train.precision import wide
from binarize.train.segmentation_distillation import SegmentationDistillation

__all__ = ["Segmentation", "SegmentationMetric", "binary_loss"]


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
        num_classes: C.
        ignore_index: Label of pixels that do not count.
        class_weights: One weight per class; with one class two, the background first.
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
        num_classes: int,
        *,
        ignore_index: int = 255,
        class_weights: Sequence[float] | Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.labels = max(2, num_classes)
        self._weights: Tensor | None = None
        if class_weights is not None:
            weights = torch.as_tensor(class_weights, dtype=torch.float32)
            if weights.shape != (self.labels,) or not bool((weights >= 0).all()):
                raise DataError(
                    "class_weights",
                    weights.tolist(),
                    f"must be {self.labels} numbers, none negative",
                    "give one weight per class",
                )
            self._weights = weights

    def prepare(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Return the logits (N, C, H, W) at ``size``, float32 or better.

        Raises:
            ModelError: The network returns another number of classes.
        """
        logits = dense_output(output)
        if logits.shape[1] != self.num_classes:
            raise ModelError(
                "num_classes",
                self.num_classes,
                f"the network returns {logits.shape[1]} channels",
                "build the network with as many classes as the data has",
            )
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
