"""Surface normals: cosine and L1 losses, angular errors, distillation.

Shape legend: N samples, H, W rows and columns; normals (N, 3, H, W).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from binarize.errors import DataError
from binarize.train.batches import dense_channels, dense_output, resize_to, wide
from binarize.train.checks import check_name, check_not_negative, check_positive
from binarize.train.distillation.schedule import SCHEDULES, anneal

__all__ = ["Normals", "NormalsDistillation", "NormalsMetric", "angles"]

_LOSSES = ("cosine", "l1")
# Coding with 8 bits per component changes the length by less.
_LENGTH = 0.05
_SHARES = (11.25, 22.5, 30.0)


def angles(first: Tensor, second: Tensor) -> Tensor:
    """Return the angles between vectors (N, 3, ...) in degrees, (N, ...).

    atan2(|a × b|, a · b) is exact for small angles, where the arc cosine loses all digits.
    """
    sine = torch.linalg.cross(first, second, dim=1).norm(dim=1)
    return torch.rad2deg(torch.atan2(sine, (first * second).sum(1)))


class NormalsMetric(Metric):
    """Angular errors over all pixels of the set (Fouhey, Gupta, Hebert 2013, section 5).

    ``mean`` and ``median`` in degrees; ``11.25°``, ``22.5°`` and ``30°``: shares of the pixels with
    a smaller error. Pixels are pooled over the whole set and all processes. The median is that of
    a histogram with bins of 0.01 degrees, interpolated in its bin.

    Args:
        dtype: Type of the sum.
    """

    full_state_update = False
    bins = 18_000
    total: Tensor
    histogram: Tensor
    below: Tensor

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=dtype), dist_reduce_fx="sum")
        counts = torch.zeros(self.bins, dtype=torch.int64)
        self.add_state("histogram", counts, dist_reduce_fx="sum")
        below = torch.zeros(len(_SHARES), dtype=torch.int64)
        self.add_state("below", below, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor, valid: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: Normals (N, 3, H, W).
            truth: Same shape; read where valid only.
            valid: Boolean (N, H, W).
        """
        found = angles(prediction, truth)[valid]
        self.total += found.sum(dtype=self.total.dtype)
        index = (found * (self.bins / 180)).long().clamp(0, self.bins - 1)
        self.histogram += torch.bincount(index, minlength=self.bins)
        self.below += torch.stack([(found < limit).sum() for limit in _SHARES])

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all pixels so far; NaN without any."""
        count = self.histogram.sum().to(self.total.dtype)
        shares = (self.below / count).unbind()
        named = {f"{limit:g}°": share for limit, share in zip(_SHARES, shares, strict=True)}
        return {"mean": self.total / count, "median": self._median(), **named}

    def _median(self) -> Tensor:
        seen = self.histogram.cumsum(0).to(self.total.dtype)
        half = seen[-1] / 2
        place = int(torch.searchsorted(seen, half).clamp(max=self.bins - 1))
        inside = half - (seen[place] - self.histogram[place])
        # 0 / 0 without any pixel.
        return (place + inside / self.histogram[place]) * (180 / self.bins)


class Normals:
    """Surface normals from one image.

    The network returns three channels, the normal in camera coordinates (x to the right, y down,
    z into the image) up to its length; other sizes are resized bilinearly. Targets are unit
    vectors, 0 where unknown. :func:`binarize.data.normals_from_depth` makes them from depth.

    Loss: "cosine": mean(1 − cos α), α the angle between prediction and truth; "l1": the mean
    absolute difference of the components of both unit vectors. Means are over the known pixels.

    Args:
        loss: "cosine" or "l1".

    Raises:
        BinarizeError: The loss is unknown.
    """

    name = "normals"
    target = "normal"
    monitor = "mean"
    higher_is_better = False

    def __init__(self, loss: str = "cosine") -> None:
        check_name(_LOSSES, loss=loss)
        self.kind = loss

    def prepare(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Return unit vectors (N, 3, H, W) at ``size``, float32 or better.

        Raises:
            ModelError: The network does not return three channels.
        """
        dense = dense_channels(output, 3, "normals need three output channels")
        return F.normalize(resize_to(dense, size), dim=1, eps=1e-6)

    def check(self, target: Tensor) -> None:
        """Reject targets that are not unit vectors.

        Raises:
            DataError: The shape is not (N, 3, H, W), or a length is neither 0 nor 1.
        """
        if target.ndim != 4 or target.shape[1] != 3 or not target.is_floating_point():
            raise DataError(
                "normal",
                f"{target.dtype} {tuple(target.shape)}",
                "must be unit vectors in a float tensor of shape (N, 3, H, W)",
                "decode 8-bit normals with normal.float() / 127.5 - 1",
            )
        length = target.norm(dim=1)
        good = (length == 0) | ((length - 1).abs() <= _LENGTH)  # false for NaN
        if not bool(good.all()):
            raise DataError(
                "normal",
                float(length[~good][0]),
                "must have length 1, or 0 (unknown)",
                "normalise the vectors, and set unknown ones to 0",
            )

    def valid(self, target: Tensor) -> Tensor:
        """Return where the ground truth is known, boolean (N, H, W)."""
        return (target != 0).any(1)

    def loss(self, prepared: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss over the pixels that count; 0 without any."""
        valid = self.valid(target)
        truth = F.normalize(target.to(prepared.dtype), dim=1)
        if self.kind == "cosine":
            losses = 1 - (prepared * truth).sum(1)
        else:
            losses = (prepared - truth).abs().mean(1)
        return torch.where(valid, losses, 0).sum() / valid.sum().clamp(min=1)

    def metric(self, device: torch.device) -> Metric:
        """Return an empty :class:`NormalsMetric`."""
        return NormalsMetric(wide(device)).to(device)

    def update(self, metric: Metric, prepared: Tensor, target: Tensor) -> None:
        """Count a batch."""
        metric.update(prepared, target.to(prepared.dtype), self.valid(target))

    def decode(self, output: Any, size: tuple[int, int] | None = None) -> Tensor:
        """Return unit vectors, (N, 3, H, W)."""
        dense = dense_output(output)
        return self.prepare(dense, size or (dense.shape[-2], dense.shape[-1]))

    def distillation(self) -> NormalsDistillation:
        """Return the default distillation loss."""
        return NormalsDistillation()


class NormalsDistillation:
    """A teacher's normals as a second target.

    Loss = f(t) · ``weight`` · mean(c · (1 − cos α)), with α the angle between student and teacher,
    f the ``schedule``, and c = exp(−β / ``tolerance``) of the teacher's error β, which reduces the
    weight of a teacher that contradicts the ground truth (1 where there is none).

    Args:
        weight: Weight of the loss.
        tolerance: Error of the teacher in degrees at which its weight is 1/e; None: always 1.
        schedule: "cosine", "linear" or "constant".

    Raises:
        BinarizeError: A value is out of range or a name unknown.
    """

    def __init__(
        self, weight: float = 0.5, *, tolerance: float | None = 20.0, schedule: str = "cosine"
    ) -> None:
        check_name(SCHEDULES, schedule=schedule)
        check_not_negative(weight=weight)
        if tolerance is not None:
            check_positive("use None for no limit", tolerance=tolerance)
        self.weight = weight
        self.tolerance = tolerance
        self.schedule = schedule

    def __call__(
        self, student: Tensor, teacher: Tensor, target: Tensor | None, done: float
    ) -> Tensor:
        """Return the scalar loss at training progress ``done``.

        Without labels (``target`` None) the teacher is fully trusted.
        """
        gap = 1 - (student * teacher).sum(1)
        if self.tolerance is not None and target is not None:
            known = (target != 0).any(1)
            trust = torch.exp(-angles(teacher, target.to(teacher.dtype)) / self.tolerance)
            gap = gap * torch.where(known, trust, 1)
        return anneal(self.schedule, done) * self.weight * gap.mean()
