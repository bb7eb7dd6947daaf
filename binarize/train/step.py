"""One optimisation step, and one epoch of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from binarize.errors import ModelError
from binarize.train.batches import batch_pair, refuse_single_value, sound_batches
from binarize.train.progress import Progress
from binarize.train.task import Distillation, Task

__all__ = ["TrainStep", "train_epoch"]

Autocast = Callable[[], AbstractContextManager[Any]]


class TrainStep:
    """Forward, loss, backward and update of one batch.

    Args:
        student: The network as the process group runs it (wrapped, compiled or plain).
        parameters: The student's parameters, for clipping.
        teacher: The teacher in evaluation mode, or None.
        task: What to learn.
        distillation: Loss between student and teacher.
        optimizer: Steps once per call.
        scheduler: Steps once per call.
        accelerator: Runs the backward pass.
        clip: Largest norm of the gradient, or None.
        scheduled: Modules whose behaviour follows the training, by a method
            ``set_progress(done)`` that takes the share that is done.
        autocast: Makes the context of the networks' forward passes.
        channels_last: Hand the images over in the channels-last memory format.
    """

    def __init__(
        self,
        student: Callable[[Tensor], Any],
        parameters: list[nn.Parameter],
        teacher: Callable[[Tensor], Any] | None,
        task: Task,
        distillation: Distillation,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        accelerator: Accelerator,
        *,
        clip: float | None,
        scheduled: Sequence[Any],
        autocast: Autocast,
        channels_last: bool,
    ) -> None:
        self.student = student
        self.parameters = parameters
        self.teacher = teacher
        self.task = task
        self.distillation = distillation
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.accelerator = accelerator
        self.clip = clip
        self.scheduled = scheduled
        self.autocast = autocast
        self.channels_last = channels_last

    def forward(self, image: Tensor, target: Tensor, done: float) -> tuple[Tensor, Tensor]:
        """Return the whole loss and the distillation's part of it, scalars.

        Args:
            image: (N, 3, H, W).
            target: The task's target.
            done: Share of the training that is done.
        """
        for module in self.scheduled:
            module.set_progress(done)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        size = (target.shape[-2], target.shape[-1])
        taught: Any = None
        with self.autocast():
            if self.teacher is not None:
                with torch.no_grad():
                    taught = self.teacher(image)
            output = self.student(image)
        prepared = self.task.prepare(output, size)
        loss = self.task.loss(prepared, target)
        if self.teacher is None:
            return loss, loss.new_zeros(())
        with torch.no_grad():
            wanted = self.task.prepare(taught, size)
        extra = self.distillation(prepared, wanted, target, done)
        return loss + extra, extra

    def update(self, loss: Tensor) -> None:
        """Change the student's weights by the gradient of ``loss``."""
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        if self.clip is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.scheduler.step()


def train_epoch(
    step: TrainStep, loader: Any, epoch: int, epochs: int, show: Progress
) -> dict[str, Any]:
    """Run all steps of an epoch and return its entry of the history, without validation.

    Args:
        step: The step; its networks are in the right modes.
        loader: Batches on the right device.
        epoch: Number of the epoch, from 0.
        epochs: Number of all epochs.
        show: Where progress goes.

    Raises:
        BinarizeError: A batch does not fit the task, or the loss is not finite.
    """
    started = time.perf_counter()
    device = step.accelerator.device
    on_cpu = device.type == "cpu"
    sums = torch.zeros(2, device=device)
    before: Tensor | None = None
    steps = len(loader)
    for index, batch in enumerate(sound_batches(loader)):
        image, target = batch_pair(batch, step.task.target)
        if on_cpu or epoch == 0:  # on other devices the check would wait for the last step
            step.task.check(target)
        try:
            loss, extra = step.forward(image, target, (epoch + index / steps) / epochs)
        except ValueError as error:
            refuse_single_value(error, image)
            raise
        # A CPU looks at the loss before it is used. Elsewhere that would leave the device
        # without work: look at the last step's, which is there by now.
        value = None
        if on_cpu:
            value = _finite(loss, epoch, index)
        elif before is not None:
            value = _finite(before, epoch, index - 1)
        step.update(loss)
        before = loss.detach()
        sums += torch.stack((before, extra.detach()))
        show.step(epoch + 1, index + 1, value)
    means = step.accelerator.reduce(sums / steps, "mean")
    _finite(means[0], epoch, steps - 1)
    record: dict[str, Any] = {"epoch": epoch + 1, "loss": means[0].item()}
    if step.teacher is not None:
        record["distillation"] = means[1].item()
    record["lr"] = float(step.scheduler.get_last_lr()[0])
    record["seconds"] = time.perf_counter() - started
    return record


def _finite(loss: Tensor, epoch: int, index: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ModelError(
            "loss",
            value,
            f"is not finite at epoch {epoch + 1}, step {index + 1}",
            "lower lr, set clip=1.0, or look for NaN in the images and the start weights",
        )
    return value
