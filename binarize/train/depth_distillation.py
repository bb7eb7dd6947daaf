"""Learn depth from a teacher's dense prediction.

Shape legend: N samples, H, W rows and columns; log-depth (N, 1, H, W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.train.anneal import SCHEDULES, anneal
from binarize.train.checks import check_name, check_not_negative, check_positive

__all__ = ["DepthDistillation", "gradient_loss"]


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
