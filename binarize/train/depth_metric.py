"""The nine standard metrics of monocular depth estimation (Eigen, Puhrsch, Fergus 2014)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["DEPTH_METRICS", "DepthMetric"]

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
