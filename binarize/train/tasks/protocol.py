"""What a task and its distillation must provide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Distillation", "Task"]

Distillation = Callable[[Tensor, Tensor, Any, float], Tensor]
"""(student's prediction, teacher's prediction, target, training progress) → scalar loss.

The target is None for images without labels.
"""


class Task(Protocol):
    """Loss, metrics and decoding for one kind of prediction.

    The trainer calls :meth:`prepare` once on a network's output and passes the result to all
    other methods: logits for segmentation, log-depth for depth.
    """

    name: str
    target: str
    """Key of the target in a batch."""
    monitor: str
    """The metric that selects the best epoch."""
    higher_is_better: bool

    def prepare(self, output: Any, size: tuple[int, int]) -> Tensor:
        """Convert a network's output to the tensor that loss and metrics use."""
        ...

    def check(self, target: Tensor) -> None:
        """Reject a target with values out of range."""
        ...

    def loss(self, prepared: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar; zero when no pixel counts."""
        ...

    def metric(self, device: torch.device) -> Metric:
        """Return an empty metric on ``device`` whose ``compute`` gives a dict."""
        ...

    def update(self, metric: Metric, prepared: Tensor, target: Tensor) -> None:
        """Add a batch to the metric."""
        ...

    def decode(self, output: Any, size: tuple[int, int] | None = None) -> Tensor:
        """Convert a network's output to the final prediction."""
        ...

    def distillation(self) -> Distillation:
        """Return the default distillation loss of the task."""
        ...
