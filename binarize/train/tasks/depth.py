"""Monocular depth estimation: SILog, the nine standard metrics, distillation.

Shape legend: N samples, H, W rows and columns.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from binarize.errors import DataError, ModelError
from binarize.train.batches import dense_channels, dense_output, resize_to, wide
from binarize.train.checks import check_name, check_not_negative, check_positive
from binarize.train.distillation.schedule import SCHEDULES, anneal

__all__ = [
    "DEPTH_METRICS",
    "Depth",
    "DepthDistillation",
    "DepthMetric",
    "gradient_loss",
    "silog_loss",
]


class Depth:
    """Depth in metres from one image.

    By convention the network has one output channel x, and its depth is
    ``max_depth`` · sigmoid(x); with ``output="metres"`` the output is already the depth (the
    network ends in its own sigmoid and factor). Outputs of another size are resized
    bilinearly, before the sigmoid. Pixels count where 0 < truth ≤ ``max_depth``.

    Args:
        max_depth: Largest depth, metres; None: the data set's, else 10.
        focus: Variance focus of the SILog loss.
        output: "logit" or "metres".

    Raises:
        DataError: ``max_depth`` is not positive.
        ModelError: ``output`` is unknown.
    """

    name = "depth"
    target = "depth"
    monitor = "AbsRel"
    higher_is_better = False

    def __init__(
        self, max_depth: float | None = None, *, focus: float = 0.85, output: str = "logit"
    ) -> None:
        self._open = max_depth is None
        max_depth = 10.0 if max_depth is None else max_depth
        if not (max_depth > 0 and math.isfinite(max_depth)):
            raise DataError("max_depth", max_depth, "must be positive", "give metres, e.g. 10")
        if output not in ("logit", "metres"):
            raise ModelError("output", output, "unknown convention", "use 'logit' or 'metres'")
        self.max_depth = float(max_depth)
        self.focus = focus
        self.output = output

    def complete(self, dataset: Any, output: Callable[[], Any], *, balance: float = 0.0) -> Depth:
        """Return the task with the data set's largest depth; see ``Task``."""
        largest = getattr(dataset, "max_depth", None)
        if not self._open or largest is None:
            return self
        made = copy.copy(self)
        made.max_depth = float(largest)
        return made

    def prepare(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Return log-depth (N, 1, H, W) at ``size``, float32 or better.

        Raises:
            ModelError: The network does not return one channel.
        """
        dense = dense_channels(output, 1, "depth needs one output channel")
        dense = resize_to(dense, size)
        if self.output == "metres":
            return dense.clamp(min=1e-3).log()
        return math.log(self.max_depth) + F.logsigmoid(dense)

    def check(self, target: Tensor) -> None:
        """Reject targets that are not depth maps in metres.

        Raises:
            DataError: The shape is not (N, 1, H, W), or a value is negative or not finite.
        """
        if target.ndim != 4 or target.shape[1] != 1 or not target.is_floating_point():
            raise DataError(
                "depth",
                f"{target.dtype} {tuple(target.shape)}",
                "must be metres in a float tensor of shape (N, 1, H, W)",
                "convert with depth.float() and add the channel dimension",
            )
        if not bool(((target >= 0) & target.isfinite()).all()):
            bad = target[~((target >= 0) & target.isfinite())][0]
            raise DataError(
                "depth", float(bad), "must be 0 (unknown) or positive", "set unknown depth to 0"
            )

    def valid(self, target: Tensor) -> Tensor:
        """Return where the ground truth counts, boolean."""
        return (target > 0) & (target <= self.max_depth)

    def loss(self, prepared: Tensor, target: Tensor) -> Tensor:
        """Return SILog over the pixels that count; 0 without any."""
        valid = self.valid(target)
        return silog_loss(prepared - torch.where(valid, target, 1).log(), valid, self.focus)

    def metric(self, device: torch.device) -> Metric:
        """Return an empty :class:`~binarize.train.tasks.depth.DepthMetric`."""
        return DepthMetric(wide(device)).to(device)

    def update(self, metric: Metric, prepared: Tensor, target: Tensor) -> None:
        """Count a batch."""
        metric.update(prepared.exp(), target, self.valid(target))

    def decode(self, output: Any, size: tuple[int, int] | None = None) -> Tensor:
        """Return depth in metres, (N, 1, H, W)."""
        dense = dense_output(output)
        return self.prepare(dense, size or (dense.shape[-2], dense.shape[-1])).exp()

    def distillation(self) -> DepthDistillation:
        """Return the default distillation loss."""
        return DepthDistillation()


def silog_loss(error: Tensor, valid: Tensor, focus: float = 0.85) -> Tensor:
    """sqrt(mean(g²) − focus · mean(g)²) of log-depth errors g (Eigen et al. 2014, Eq. 4).

    The root and the variance focus 0.85 follow Lee et al. 2019 (BTS, Eq. 4). With focus 1 the loss
    ignores a common factor on all depths, with focus 0 it is the RMSE of log-depth.

    Args:
        error: g = log(prediction) − log(truth), any shape; ignored where not valid.
        valid: Boolean, same shape.
        focus: Between 0 and 1.

    Returns:
        Scalar; 0 when nothing is valid. Means are over all valid pixels of the batch.
    """
    error = torch.where(valid, error, 0)
    count = valid.sum().clamp(min=1)
    squared = error.square().sum() / count - focus * (error.sum() / count).square()
    # The root has no gradient at 0, the value of a batch without valid pixels.
    return squared.clamp(min=torch.finfo(error.dtype).tiny).sqrt()


DEPTH_METRICS = (
    "δ1",
    "δ2",
    "δ3",
    "AbsRel",
    "RMSE",
    "log10",
    "RMSElog",
    "SILog",
    "SqRel",
)


class DepthMetric(Metric):
    """Depth metrics, each computed per image and then averaged over the images.

    With d the prediction, t the truth, g = ln d − ln t, means over an image's valid pixels:
    δk = share with max(d/t, t/d) < 1.25^k; AbsRel = mean(|d − t|/t); SqRel = mean((d − t)²/t);
    RMSE = sqrt(mean((d − t)²)); RMSElog = sqrt(mean(g²)); log10 = mean(|log10 d − log10 t|);
    SILog = 100 · sqrt(mean(g²) − mean(g)²). Images without a valid pixel are left out.
    Published NYUv2 and KITTI tables also average per image; RMSE over the pooled pixels of a whole
    set is larger.

    Args:
        dtype: Type of the sums.
    """

    full_state_update = False
    totals: Tensor
    images: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        zeros = torch.zeros(len(DEPTH_METRICS), dtype=dtype)
        self.add_state("totals", zeros, dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")

    def update(self, depth: Tensor, truth: Tensor, valid: Tensor) -> None:
        """Count a batch.

        Args:
            depth: Prediction in metres, (N, ...), positive.
            truth: Same shape; read where valid only.
            valid: Boolean, same shape.
        """
        count = valid.flatten(1).sum(1)
        # Invalid pixels get d = t = 1, which adds nothing to any sum but δ's.
        truth = torch.where(valid, truth, 1)
        depth = torch.where(valid, depth, 1)
        gap = depth - truth
        log_gap = depth.log() - truth.log()
        size = log_gap.abs()

        def mean(values: Tensor) -> Tensor:
            return values.flatten(1).sum(1, dtype=self.totals.dtype) / count.clamp(min=1)

        squared_log = mean(log_gap.square())
        rows = [
            *(mean((size < k * math.log(1.25)) & valid) for k in (1, 2, 3)),
            mean(gap.abs() / truth),
            mean(gap.square()).sqrt(),
            mean(size) / math.log(10),
            squared_log.sqrt(),
            100 * (squared_log - mean(log_gap).square()).clamp(min=0).sqrt(),
            mean(gap.square() / truth),
        ]
        seen = count > 0
        self.totals += torch.where(seen, torch.stack(rows), 0).sum(1)
        self.images += seen.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all images so far; NaN without any."""
        means = self.totals / self.images
        return dict(zip(DEPTH_METRICS, means.unbind(), strict=True))


def gradient_loss(difference: Tensor, scales: int = 3) -> Tensor:
    """Mean |∂x| + |∂y| of a log-depth difference over ``scales`` halvings (Li, Snavely 2018).

    It matches the teacher's edges and slopes and ignores the overall level.

    Args:
        difference: (N, 1, H, W).
        scales: Number of resolutions; those smaller than 2 pixels are left out.
    """
    total = difference.new_zeros(())
    for scale in range(scales):
        if min(difference.shape[-2:]) < 2:
            break
        across = (difference[..., :, 1:] - difference[..., :, :-1]).abs().mean()
        down = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
        total = total + across + down
        if scale + 1 < scales:
            difference = F.avg_pool2d(difference, 2, ceil_mode=True)
    return total


class DepthDistillation:
    """A teacher's log-depth as a second target: its values and its gradients.

    Loss = f(t) · (``weight`` · mean(c·|s − t|) + ``gradient_weight`` · gradient(s − t)), where s
    and t are log-depths, f is the ``schedule`` and c = exp(−|t − truth| / ``tolerance``)
    reduces the weight of a teacher that contradicts the ground truth (1 where there is none).

    Args:
        weight: Weight of the values.
        gradient_weight: Weight of the gradients; 0 turns them off.
        tolerance: Log-depth error of the teacher at which its weight is 1/e; None: always 1.
        scales: Resolutions of the gradient term.
        schedule: "cosine", "linear" or "constant".

    Raises:
        BinarizeError: A value is out of range or a name unknown.
    """

    def __init__(
        self,
        weight: float = 0.5,
        *,
        gradient_weight: float = 0.5,
        tolerance: float | None = 0.1,
        scales: int = 3,
        schedule: str = "cosine",
    ) -> None:
        check_name(SCHEDULES, schedule=schedule)
        check_not_negative(weight=weight, gradient_weight=gradient_weight)
        if tolerance is not None:
            check_positive("use None for no limit", tolerance=tolerance)
        self.weight = weight
        self.gradient_weight = gradient_weight
        self.tolerance = tolerance
        self.scales = scales
        self.schedule = schedule

    def __call__(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, done: float
    ) -> Tensor:
        """Return the scalar loss at training progress ``done``.

        Without labels (``target`` None) the teacher is fully trusted.
        """
        factor = anneal(self.schedule, done)
        loss = student.new_zeros(())
        if factor == 0:
            return loss
        difference = student - teacher
        if self.weight > 0:
            gap = difference.abs()
            if self.tolerance is not None and target is not None:
                known = target > 0
                wrong = (teacher - torch.where(known, target, 1).log()).abs()
                gap = gap * torch.where(known, torch.exp(-wrong / self.tolerance), 1)
            loss = loss + factor * self.weight * gap.mean()
        if self.gradient_weight > 0:
            loss = loss + factor * self.gradient_weight * gradient_loss(difference, self.scales)
        return loss
