"""Monocular depth estimation: SILog and the nine standard metrics.

Shape legend: N samples, H, W rows and columns.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from binarize.errors import DataError, ModelError
from binarize.train.depth_distillation import DepthDistillation
from binarize.train.depth_metric import DepthMetric
from binarize.train.outputs import dense_output, resize_to
from binarize.train.precision import wide
from binarize.train.silog import silog_loss

__all__ = ["Depth"]


class Depth:
    """Depth in metres from one image.

    By convention the network has one output channel x, and its depth is
    ``max_depth`` · sigmoid(x); with ``output="metres"`` the output is already the depth (the
    network ends in its own sigmoid and factor). Outputs of another size are resized
    bilinearly, before the sigmoid. Pixels count where 0 < truth ≤ ``max_depth``.

    Args:
        max_depth: Largest depth, metres.
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
        self, max_depth: float = 10.0, *, focus: float = 0.85, output: str = "logit"
    ) -> None:
        if not (max_depth > 0 and math.isfinite(max_depth)):
            raise DataError("max_depth", max_depth, "must be positive", "give metres, e.g. 10")
        if output not in ("logit", "metres"):
            raise ModelError("output", output, "unknown convention", "use 'logit' or 'metres'")
        self.max_depth = float(max_depth)
        self.focus = focus
        self.output = output

    def prepare(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Return log-depth (N, 1, H, W) at ``size``, float32 or better.

        Raises:
            ModelError: The network does not return one channel.
        """
        dense = dense_output(output)
        if dense.shape[1] != 1:
            raise ModelError(
                "output",
                tuple(dense.shape),
                "depth needs one output channel",
                "build the network with classes=1",
            )
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
        """Return an empty :class:`~binarize.train.depth_metric.DepthMetric`."""
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
