"""Evaluate a network on a data set."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from binarize.errors import DataError
from binarize.train.batches import batch_pair, target_size
from binarize.train.loading import read_batches
from binarize.train.modes import training_flags
from binarize.train.precision import wide
from binarize.train.task import Task

__all__ = ["evaluate", "is_better"]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    batches: Any,
    device: torch.device,
    *,
    channels_last: bool = True,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    on_batch: Callable[[int, int | None], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a network on batches of images and targets, in evaluation mode.

    Args:
        model: The network; its training flags are restored afterwards.
        task: The task, which defines the metrics.
        batches: An iterable of images and targets.
        device: The network's device.
        channels_last: Pass the images in the channels-last memory format.
        autocast: Makes the context of the forward pass.
        on_batch: Called with (batches done, total batches or None).

    Returns:
        The task's metrics and ``loss`` (mean over the batches), over all processes, as floats,
        those with several values as lists of floats.

    Raises:
        DataError: There is no batch, or a batch does not fit the task.
    """
    metric = task.metric(device)
    losses = torch.zeros(2, dtype=wide(device), device=device)
    count = len(batches) if hasattr(batches, "__len__") else None
    with training_flags(model):
        model.eval()
        # Always as epoch 0: random validation data are then the same each time.
        for index, batch in enumerate(read_batches(batches, "loader", 0)):
            image, target = batch_pair(batch, task.target)
            image, target = image.to(device), target.to(device)
            task.check(target)
            if channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            with autocast():
                output = model(image)
            prepared = task.prepare(output, target_size(image, target))
            task.update(metric, prepared, target)
            losses[0] += task.loss(prepared, target)
            losses[1] += 1
            if on_batch is not None:
                on_batch(index + 1, count)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(losses)
    if losses[1] == 0:
        raise DataError("loader", 0, "has no batches", "give a data set with at least one sample")
    with warnings.catch_warnings():
        # A process may get no part of a small set; the others' sums still count.
        warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
        values = metric.compute()
    numbers = {name: value.tolist() for name, value in values.items()}
    return {**numbers, "loss": (losses[0] / losses[1]).item()}


def is_better(value: float, best: dict[str, Any] | None, higher: bool) -> bool:
    """Return whether a metric beats the best so far; neither NaN nor a tie does."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return bool(value > best["value"] if higher else value < best["value"])
