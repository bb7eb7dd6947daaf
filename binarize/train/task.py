"""What the trainer needs to know about a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Distillation", "Task"]

Distillation = Callable[[Tensor, Tensor, Any, float], Tensor]
"""(student's map, teacher's map, target, share of the training done) → loss, a scalar.

The target is None for images without labels, of which there are only those that the data set gives.
"""


class Task(Protocol):
    """Loss, metrics and decoding of one kind of dense prediction.

    The trainer calls :meth:`prepare` once on a network's output and hands the result to all
    other methods: logits for segmentation, log-depth for depth.
    """

    name: str
    target: str
    """Key of the target in a batch."""
    monitor: str
    """The metric that says which epoch is best."""
    higher_is_better: bool

    def prepare(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Turn a network's output into the map that loss and metrics work on."""
        ...

    def check(self, target: Tensor) -> None:
        """Refuse a target with values out of range."""
        ...

    def loss(self, prepared: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar; zero when no pixel counts."""
        ...

    def metric(self, device: torch.device) -> Metric:
        """Return an empty metric on ``device`` whose ``compute`` gives a dict."""
        ...

    def update(self, metric: Metric, prepared: Tensor, target: Tensor) -> None:
        """Count a batch into the metric."""
        ...

    def decode(self, output: Any, size: tuple[int, int] | None = None) -> Tensor:
        """Turn a network's output into the prediction a user looks at."""
        ...

    def distillation(self) -> Distillation:
        """Return the default distillation loss of the task."""
        ...
