"""What a task and its distillation must provide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["Distillation", "Task"]

Distillation = Callable[[Any, Any, Any, float], Tensor]
"""(student's prediction, teacher's prediction, target, training progress) → scalar loss.

Predictions are what the task's ``prepare`` returns. The target is None for images without labels.
"""


class Task(Protocol):
    """Loss, metrics and decoding for one kind of prediction, with its settings.

    The trainer calls :meth:`prepare` once on a network's output and passes the result to all
    other methods: logits for segmentation, log-depth for depth. Instead of one tensor it may be a
    mapping of tensors with samples along the first dimension.

    A task that is an ``nn.Module`` may have parameters: they are optimized with the network's,
    without weight decay, averaged over processes, and saved in the checkpoints. A method
    ``current()`` may return plain values for the history, as :class:`MultiTask` does.
    """

    name: str
    monitor: str
    """The metric that selects the best epoch."""
    higher_is_better: bool

    @property
    def target(self) -> str | tuple[str, ...]:
        """Key of the target in a batch; of several keys, a mapping of targets by key is passed."""
        ...

    def complete(self, dataset: Any, output: Callable[[], Any], *, balance: float = 0.0) -> Task:
        """Return the task with the settings that were left open, before training or evaluation.

        Tasks without the method are used as they are.

        Args:
            dataset: The loader's data set, or None.
            output: Returns the network's output for a sample.
            balance: Power of balanced class weights; 0 in an evaluation: no weights.
        """
        return self

    def prepare(self, output: Any, size: tuple[int, int]) -> Any:
        """Convert a network's output to the tensor that loss and metrics use."""
        ...

    def check(self, target: Any) -> None:
        """Reject a target with values out of range."""
        ...

    def loss(self, prepared: Any, target: Any) -> Tensor:
        """Return the loss, a scalar; zero when no pixel counts."""
        ...

    def metric(self, device: torch.device) -> Metric:
        """Return an empty metric on ``device`` whose ``compute`` gives a dict."""
        ...

    def update(self, metric: Metric, prepared: Any, target: Any) -> None:
        """Add a batch to the metric."""
        ...

    def decode(self, output: Any, size: tuple[int, int] | None = None) -> Any:
        """Convert a network's output to the final prediction."""
        ...

    def distillation(self) -> Distillation:
        """Return the default distillation loss of the task."""
        ...
