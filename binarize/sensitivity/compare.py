"""Compare a network's output with the float network's over some batches.

Shape legend: N samples, C channels of the output, H, W rows and columns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from binarize.train.batches import batch_image, batch_pair, dense_output, each, target_size
from binarize.train.tasks.protocol import Task

__all__ = ["Comparator", "EvalResult", "compare", "error_of_mean"]

# The threshold of the depth metric δ1.
_FAR = math.log(1.25)


@dataclass(frozen=True)
class EvalResult:
    """The results of one network.

    Attributes:
        metric: The task's metric over all batches; ``None`` without a task.
        metrics: The same per batch; () without a task.
        distances: Distance to the reference's output, per batch.
        disagreements: Disagreement with it, per batch.
    """

    metric: float | None
    metrics: tuple[float, ...]
    distances: tuple[float, ...]
    disagreements: tuple[float, ...]

    @property
    def distance(self) -> float:
        """The mean over the batches."""
        return fmean(self.distances)

    @property
    def disagreement(self) -> float:
        """The mean over the batches."""
        return fmean(self.disagreements)


class Comparator:
    """Compares networks with a reference network on the same batches.

    Args:
        reference: The reference network. Its output for all batches is kept in memory.
        batches: Images and targets, or without a task images; at least one batch.
        task: The task, for its metric and to extract predictions from outputs; without
            one, dimension 1 of the output is the channels.
        device: The networks' device.

    Attributes:
        reference: The reference's own results.
        images: Number of images.

    Raises:
        DataError: A batch does not fit the task.
    """

    def __init__(
        self, reference: nn.Module, batches: Sequence[Any], task: Task | None, device: torch.device
    ) -> None:
        self._task = task
        self._device = device
        self._pairs = [self._pair(batch) for batch in batches]
        self._maps: list[Any] = []
        self.images = sum(len(image) for image, _ in self._pairs)
        self.reference = self.evaluate(reference)

    @torch.no_grad()
    def evaluate(self, network: nn.Module) -> EvalResult:
        """Evaluate a network, which is left in evaluation mode."""
        network.eval()
        first = not self._maps
        task = self._task
        total = None if task is None else task.metric(self._device)
        metrics, pairs = [], []
        for number, (image, target) in enumerate(self._pairs):
            made = _prepare(network(image), image, target, task)
            if task is not None and total is not None and target is not None:
                single = task.metric(self._device)
                for metric in (total, single):
                    task.update(metric, made, target)
                metrics.append(_value(single, task))
            if first:
                self._maps.append(made)
            pairs.append(_compare(self._maps[number], made))
        overall = None if total is None or task is None else _value(total, task)
        distances, disagreements = zip(*pairs, strict=True)
        return EvalResult(overall, tuple(metrics), distances, disagreements)

    def _pair(self, batch: Any) -> tuple[Tensor, Any]:
        if self._task is None:
            image, target = batch_image(batch), None
        else:
            image, target = batch_pair(batch, self._task.target)
            target = each(lambda x: x.to(self._device), target)
            self._task.check(target)
        image = image.to(self._device)
        return image.contiguous(memory_format=torch.channels_last), target


def compare(reference: Tensor, other: Tensor) -> tuple[float, float]:
    """Return distance and disagreement of two predictions (N, C, ...), see ``SiteSensitivity``.

    Args:
        reference: The float network's prediction: logits of C classes, or values if C = 1.
        other: Another network's.

    Returns:
        Mean Kullback-Leibler divergence Σ_c p_c·(log p_c − log q_c) of other's classes q from the
        reference's p and the share of positions whose most likely class differs. With C = 1 the
        mean absolute difference, and the share of positions where it exceeds log 1.25.
    """
    wide = torch.float64 if reference.device.type != "mps" else torch.float32
    if reference.shape[1] == 1:
        gap = (reference - other).abs()
        return float(gap.mean(dtype=wide)), float((gap > _FAR).to(wide).mean())
    p, q = reference.float().log_softmax(1), other.float().log_softmax(1)
    divergence = (p.exp() * (p - q)).sum(1).mean(dtype=wide)
    return float(divergence), float((p.argmax(1) != q.argmax(1)).to(wide).mean())


def _compare(reference: Any, other: Any) -> tuple[float, float]:
    """Return distance and disagreement, of several predictions their means."""
    if isinstance(reference, Tensor):
        return compare(reference, other)
    pairs = [_compare(reference[name], other[name]) for name in reference]
    distances, disagreements = zip(*pairs, strict=True)
    return sum(distances) / len(pairs), sum(disagreements) / len(pairs)


def error_of_mean(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean, s/√n; ``None`` for fewer than two values."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _prepare(output: Any, image: Tensor, target: Any, task: Task | None) -> Any:
    if task is not None and target is not None:
        return task.prepare(output, target_size(image, target))
    # Classification networks return (N, C).
    flat = isinstance(output, Tensor) and output.ndim == 2
    return output if flat else dense_output(output)


def _value(metric: Any, task: Task) -> float:
    with warnings.catch_warnings():
        # A batch may have no pixels that count.
        warnings.simplefilter("ignore")
        return float(metric.compute()[task.monitor])
