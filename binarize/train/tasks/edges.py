"""Edge detection: class-balanced cross-entropy, ODS and OIS F-measures, distillation.

Shape legend: N samples, H, W rows and columns, K thresholds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from binarize.errors import BinarizeError, DataError
from binarize.train.batches import dense_channels, dense_output, resize_to, wide
from binarize.train.checks import check_name, check_not_negative, check_positive
from binarize.train.distillation.schedule import SCHEDULES, anneal

__all__ = ["Edges", "EdgesDistillation", "EdgesMetric", "balanced_loss", "spread"]

TOLERANCE = 0.0075
"""Default matching distance, as a share of the image's diagonal; that of BSDS500."""
_THRESHOLDS = 99


def balanced_loss(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Class-balanced cross-entropy (Xie, Tu 2015, Eq. 2), as a mean over the pixels that count.

    −β · log p over the edges and −(1 − β) · log(1 − p) over the others, with β the share of pixels
    that are no edge, in each image.

    Args:
        logits: (N, H, W).
        target: 0 or 1, same shape; anything where not valid.
        valid: Boolean, same shape.

    Returns:
        Scalar; 0 when nothing counts. An image without any edge has β = 1, and loss 0.
    """
    truth = torch.where(valid, target, 0).to(logits.dtype)
    count = valid.flatten(1).sum(1).clamp(min=1)
    beta = (1 - truth.flatten(1).sum(1) / count).view(-1, 1, 1)
    weight = torch.where(truth == 1, beta, 1 - beta)
    losses = F.binary_cross_entropy_with_logits(logits, truth, weight, reduction="none")
    return torch.where(valid, losses, 0).sum() / valid.sum().clamp(min=1)


def spread(values: Tensor, radius: float) -> Tensor:
    """Return the largest value within a Euclidean distance of each pixel.

    Args:
        values: (N, H, W).
        radius: Distance in pixels.
    """
    rows, columns = values.shape[-2:]
    reach = int(radius)
    padded = F.pad(values, (reach, reach, reach, reach), value=-math.inf)
    found = values
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            if math.hypot(down, right) <= radius:
                top, left = reach + down, reach + right
                found = torch.maximum(found, padded[:, top : top + rows, left : left + columns])
    return found


class EdgesMetric(Metric):
    """F-measure at the best threshold of the set (ODS) and of each image (OIS).

    At each of 99 thresholds t = 0.01 ... 0.99 a pixel is an edge if p ≥ t. Precision is the share
    of predicted edge pixels with a true one within the tolerance, recall the share of true edge
    pixels with a predicted one within it, F = 2PR / (P + R). ``ODS-F`` has the counts of the whole
    set at one threshold, ``OIS-F`` those of each image at its own best one, both summed over the
    set (and all processes) before dividing.

    This deviates from the BSDS benchmark (Arbelaez et al. 2011), which thins predictions and
    matches pixels one to one: here several predicted pixels may match the same true one, so that
    thick edges cost less precision, and numbers are not comparable to published ones.

    Args:
        tolerance: Largest distance of matching pixels, as a share of the image's diagonal.
        dtype: Type of the sums.
    """

    full_state_update = False
    ods: Tensor
    ois: Tensor

    def __init__(self, tolerance: float = TOLERANCE, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.tolerance = tolerance
        # Predicted pixels that match, all predicted ones, true ones that match, all true ones.
        self.add_state("ods", torch.zeros(4, _THRESHOLDS, dtype=dtype), dist_reduce_fx="sum")
        self.add_state("ois", torch.zeros(4, dtype=dtype), dist_reduce_fx="sum")

    def update(self, probability: Tensor, target: Tensor, valid: Tensor) -> None:
        """Count a batch.

        Args:
            probability: Of an edge, (N, H, W).
            target: 0 or 1, same shape; read where valid only.
            valid: Boolean, same shape.
        """
        radius = self.tolerance * math.hypot(*probability.shape[-2:])
        probability = torch.where(valid, probability, -1.0)
        truth = (target == 1) & valid
        near_truth = spread(truth.to(probability.dtype), radius) > 0
        near_guess = spread(probability, radius)
        pairs = (
            (probability, near_truth & valid),
            (probability, valid),
            (near_guess, truth),
            (near_guess, truth),
        )
        # How many thresholds each value reaches: one histogram instead of a pass for each.
        rows = [_reached(values, where) for values, where in pairs]
        rows[3] = truth.flatten(1).sum(1, keepdim=True).expand_as(rows[2])
        counts = torch.stack(rows).to(self.ods.dtype)  # (4, N, K)
        self.ods += counts.sum(1)
        best = _f_measure(counts).argmax(1)  # (N,)
        self.ois += counts.gather(2, best.view(1, -1, 1).expand(4, -1, 1)).sum((1, 2))

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all images so far; NaN without any true edge."""
        without = self.ois[3] == 0
        found = {"ODS-F": _f_measure(self.ods).max(), "OIS-F": _f_measure(self.ois)}
        return {name: torch.where(without, torch.nan, value) for name, value in found.items()}


def _reached(values: Tensor, where: Tensor) -> Tensor:
    """Count the values that reach each threshold, (N, K)."""
    # The tolerance keeps 0.29, which is 28.999... hundredths, at its threshold.
    steps = (values * (_THRESHOLDS + 1) + 1e-4).floor().clamp(0, _THRESHOLDS).long()
    steps = torch.where(where, steps, 0).flatten(1)
    counts = torch.zeros(len(values), _THRESHOLDS + 1, dtype=torch.int64, device=values.device)
    counts.scatter_add_(1, steps, torch.ones_like(steps))
    return counts[:, 1:].flip(1).cumsum(1).flip(1)


def _f_measure(counts: Tensor) -> Tensor:
    """Return F from the four counts along the first dimension; 0 where nothing matches."""
    right, guessed, found, true = counts
    precision, recall = right / guessed.clamp(min=1), found / true.clamp(min=1)
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / torch.where(total > 0, total, 1), 0)


class Edges:
    """Edges from one image.

    The network returns one channel, the logit of an edge; other sizes are resized bilinearly.
    Targets are 0 or 1, (N, H, W) of any integer type. The loss is the class-balanced cross-entropy,
    :func:`balanced_loss`; the metrics are those of :class:`EdgesMetric`.

    Args:
        ignore_index: Value of pixels that do not count.
        tolerance: Of the metric: largest distance of matching edges, as a share of the diagonal.

    Raises:
        BinarizeError: The tolerance is not from 0 to 0.1.
    """

    name = "edges"
    target = "edge"
    monitor = "ODS-F"
    higher_is_better = True

    def __init__(self, *, ignore_index: int = 255, tolerance: float = TOLERANCE) -> None:
        if not 0 <= tolerance <= 0.1:
            raise BinarizeError(
                "tolerance", tolerance, "must be from 0 to 0.1 of the diagonal", "use e.g. 0.0075"
            )
        self.ignore_index = ignore_index
        self.tolerance = tolerance

    def prepare(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Return the logits (N, 1, H, W) at ``size``, float32 or better.

        Raises:
            ModelError: The network does not return one channel.
        """
        dense = dense_channels(output, 1, "edges need one output channel")
        return resize_to(dense, size)

    def check(self, target: Tensor) -> None:
        """Reject targets that are not edge maps.

        Raises:
            DataError: The shape is not (N, H, W), or a value is not 0, 1 or ignored.
        """
        if target.ndim != 3 or target.is_floating_point():
            raise DataError(
                "edge",
                f"{target.dtype} {tuple(target.shape)}",
                "must be 0 or 1 in an integer tensor of shape (N, H, W)",
                "convert with edge.long() and remove the channel dimension",
            )
        target = target.long()
        bad = (target != 0) & (target != 1) & (target != self.ignore_index)
        if bool(bad.any()):
            raise DataError(
                "edge",
                int(target[bad][0]),
                f"must be 0 or 1, or {self.ignore_index} (ignored)",
                "divide maps of 0 and 255 by 255",
            )

    def valid(self, target: Tensor) -> Tensor:
        """Return where the ground truth counts, boolean."""
        return target.long() != self.ignore_index

    def loss(self, prepared: Tensor, target: Tensor) -> Tensor:
        """Return the class-balanced cross-entropy over the pixels that count; 0 without any."""
        return balanced_loss(prepared[:, 0], target.long(), self.valid(target))

    def metric(self, device: torch.device) -> Metric:
        """Return an empty :class:`EdgesMetric`."""
        return EdgesMetric(self.tolerance, wide(device)).to(device)

    def update(self, metric: Metric, prepared: Tensor, target: Tensor) -> None:
        """Count a batch."""
        metric.update(prepared[:, 0].sigmoid(), target.long(), self.valid(target))

    def decode(self, output: Any, size: tuple[int, int] | None = None) -> Tensor:
        """Return the probability of an edge, (N, 1, H, W)."""
        dense = dense_output(output)
        return self.prepare(dense, size or (dense.shape[-2], dense.shape[-1])).sigmoid()

    def distillation(self) -> EdgesDistillation:
        """Return the default distillation loss."""
        return EdgesDistillation(ignore_index=self.ignore_index)


class EdgesDistillation:
    """A teacher's edge probabilities as a second target.

    Loss = f(t) · ``weight`` · T² · mean over pixels of KL(teacher ‖ student) at temperature T, with
    f the ``schedule``. Edges weigh more than the rest, by the teacher's own class balance.

    Args:
        weight: Weight of the loss.
        temperature: T.
        schedule: "cosine", "linear" or "constant".
        ignore_index: Value of pixels that do not count.

    Raises:
        BinarizeError: A value is out of range or a name unknown.
    """

    def __init__(
        self,
        weight: float = 1.0,
        temperature: float = 1.0,
        *,
        schedule: str = "cosine",
        ignore_index: int = 255,
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
        """Return the scalar loss at training progress ``done``; without labels all pixels count."""
        ours, theirs = (x[:, 0] / self.temperature for x in (student, teacher))
        valid = torch.ones_like(ours, dtype=torch.bool)
        if target is not None:
            valid = target.long() != self.ignore_index
        p = theirs.sigmoid()
        divergence = p * (F.logsigmoid(theirs) - F.logsigmoid(ours))
        divergence = divergence + (1 - p) * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
        count = valid.flatten(1).sum(1).clamp(min=1)
        beta = 1 - torch.where(valid, p, 0).flatten(1).sum(1) / count
        weight = p * beta.view(-1, 1, 1) + (1 - p) * (1 - beta).view(-1, 1, 1)
        total = torch.where(valid, weight * divergence, 0).sum() / valid.sum().clamp(min=1)
        return anneal(self.schedule, done) * self.weight * self.temperature**2 * total
