"""One optimisation step, and one epoch of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from binarize.errors import ModelError
from binarize.train.agreement import AgreementTerm
from binarize.train.batches import (
    batch_image,
    batch_parts,
    each,
    first_tensor,
    read_batches,
    reject_single_value,
    target_size,
)
from binarize.train.checkpoint import Saver
from binarize.train.distillation.features import FeatureTerm
from binarize.train.processes import average_gradients
from binarize.train.progress.displays import Progress, report_images
from binarize.train.seeding import seed_step
from binarize.train.sharpness import Sharpness
from binarize.train.tasks.protocol import Distillation, Task
from binarize.train.teachers import Teachers

__all__ = ["TrainStep", "train_epoch"]

Autocast = Callable[[], AbstractContextManager[Any]]


class TrainStep:
    """Forward, loss, backward and update of one batch.

    Args:
        student: The network as it is run (wrapped for several processes, compiled or plain).
        parameters: The student's parameters, for clipping.
        teachers: The teachers, whose prediction is distilled.
        task: The task.
        distillation: Loss between student and teacher.
        optimizer: Steps once per update.
        scheduler: Steps once per update.
        accelerator: Gives access to the device and the other processes.
        clip: Maximum gradient norm, or None.
        scheduled: Modules with a method ``set_progress(done)``, which gets the training progress
            from 0 to 1.
        autocast: Returns the context of the student's forward pass.
        channels_last: Pass the images in the channels-last memory format.
        norms: Returns the context of the student's norms.
        accumulate: Batches per update.
        no_sync: Returns the context of a backward pass without an update.
        after_update: Called after each update.
        features: The feature-map loss, or None.
        learnt: Parameters outside the student.
        sharpness: Moves the student's weights before a step, or None.
        agreement: The penalty on differences from a base, or None.
    """

    def __init__(
        self,
        student: Callable[[Tensor], Any],
        parameters: list[nn.Parameter],
        teachers: Teachers,
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
        norms: Autocast = nullcontext,
        accumulate: int = 1,
        no_sync: Autocast = nullcontext,
        after_update: Callable[[], None] = lambda: None,
        features: FeatureTerm | None = None,
        learnt: Sequence[nn.Parameter] = (),
        sharpness: Sharpness | None = None,
        agreement: AgreementTerm | None = None,
    ) -> None:
        self.student = student
        self.parameters = parameters
        self.teachers = teachers
        self.features = features
        self.learnt = list(learnt)
        self.task = task
        self.distillation = distillation
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.accelerator = accelerator
        self.clip = clip
        self.scheduled = scheduled
        self.autocast = autocast
        self.channels_last = channels_last
        self.norms = norms
        self.accumulate = accumulate
        self.no_sync = no_sync
        self.after_update = after_update
        self.sharpness = sharpness
        self.agreement = agreement

    def move(self, image: Tensor, target: Any, labelled: Tensor | None, done: float) -> None:
        """Move the weights to where the loss of a batch is larger, until :meth:`backward`."""
        if self.sharpness is not None:
            with self.no_sync():
                self.sharpness.move(lambda: self.forward(image, target, labelled, done)[0])

    def forward(
        self, image: Tensor, target: Any, labelled: Tensor | None, done: float
    ) -> tuple[Tensor, Tensor]:
        """Return the total loss and the distillation's part of it, scalars.

        Args:
            image: (N, 3, H, W).
            target: The task's target, a tensor or a mapping of them; None if no image has one.
            labelled: Which images have one, boolean (N,); None: all.
            done: Training progress, from 0 to 1.
        """
        for module in self.scheduled:
            module.set_progress(done)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        size = target_size(image, target)
        reading = nullcontext() if self.features is None else self.features.student.listening()
        wanted = self.teachers.predict(image, size) if self.teachers else None
        beside = nullcontext() if self.agreement is None else self.agreement.listening(image)
        with self.autocast(), beside, self.norms(), reading:
            output = self.student(image)
        prepared = self.task.prepare(output, size)
        loss = self._loss(prepared, target, labelled)
        penalty = None if self.agreement is None else self.agreement.loss()
        if penalty is not None:
            loss = loss + penalty
        if wanted is None:
            return loss, loss.new_zeros(())
        # Teachers by head need not teach all heads.
        wanted = each(lambda theirs, ours: theirs.to(ours.dtype), wanted, prepared)
        extra = self._distill(prepared, wanted, target, labelled, done)
        if self.features is not None:
            extra = extra + self.features.loss(done)
        return loss + extra, extra

    def _loss(self, prepared: Any, target: Any, labelled: Tensor | None) -> Tensor:
        """Return the task's loss over the images that have a target."""
        if target is not None and labelled is not None:
            prepared, target = (each(lambda x: x[labelled], part) for part in (prepared, target))
        if target is None or len(first_tensor(target)) == 0:
            return self._nothing(prepared)
        return self.task.loss(prepared, target)

    def _nothing(self, prepared: Any) -> Tensor:
        """Return a loss of 0 that every parameter has a gradient of, as processes expect."""
        sums: list[Tensor] = [p.sum() for p in self.learnt]
        each(lambda x: sums.append(x.sum()), prepared)
        return torch.stack(sums).sum() * 0

    def _distill(
        self,
        prepared: Any,
        wanted: Any,
        target: Any,
        labelled: Tensor | None,
        done: float,
    ) -> Tensor:
        """Return the distillation loss over images with and without a target, weighted by count."""
        if target is None or labelled is None:
            return self.distillation(prepared, wanted, target, done)
        parts = prepared, wanted, target
        ours, theirs, truth = (each(lambda x: x[labelled], part) for part in parts)
        known = self.distillation(ours, theirs, truth, done)
        ours, theirs = (each(lambda x: x[~labelled], part) for part in parts[:2])
        unknown = self.distillation(ours, theirs, None, done)
        share = labelled.sum() / len(labelled)
        return share * known + (1 - share) * unknown

    def backward(self, loss: Tensor, *, first: bool, last: bool) -> None:
        """Accumulate the gradient of ``loss``, and update the weights after the last batch.

        Args:
            loss: The batch's loss, divided by the number of batches per update.
            first: Discard the gradient of the last update first.
            last: An update follows; until then processes do not exchange gradients.
        """
        if first:
            self.optimizer.zero_grad(set_to_none=True)
        # Not accelerator.backward, which divides by the launcher's accumulation steps.
        with nullcontext() if last else self.no_sync():
            loss.backward()
        if self.sharpness is not None:
            self.sharpness.restore()
        if not last:
            return
        average_gradients(self.learnt)
        if self.clip is not None:
            self.accelerator.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.scheduler.step()
        self.after_update()


def train_epoch(
    step: TrainStep,
    loader: Any,
    epoch: int,
    epochs: int,
    show: Progress,
    *,
    seed: int = 0,
    part: Mapping[str, Any] | None = None,
    saver: Saver | None = None,
) -> dict[str, Any]:
    """Run all steps of an epoch and return its history entry, without validation.

    Args:
        step: The step; its networks are in the right mode.
        loader: Batches on the right device.
        epoch: Number of the epoch, from 0.
        epochs: Total number of epochs.
        show: Progress display.
        seed: Seed of the run.
        part: State of a checkpoint from within this epoch: the finished batches are read again, to
            restore the order of the rest, and skipped.
        saver: May save after each update.

    Raises:
        BinarizeError: A batch does not fit the task, or the loss is not finite.
    """
    started = time.perf_counter()
    device = step.accelerator.device
    processes = step.accelerator.num_processes
    on_cpu = device.type == "cpu"
    sums = torch.zeros(2, device=device)
    done, before_that, images = 0, 0.0, 0
    if part is not None:
        done, before_that = part["step"], part["seconds"]
        if step.accelerator.is_main_process:  # sums are over all processes
            sums += torch.tensor(part["sums"], device=device)
    before: Tensor | None = None
    steps = len(loader)
    trained = 0
    for index, batch in enumerate(read_batches(loader, "train_loader", epoch)):
        if index >= steps:
            continue  # workers that share a stream may end with a partial batch each
        trained = index + 1
        images += batch_image(batch).shape[0] * processes
        if index < done:
            continue
        parts = batch_parts(batch, step.task.target, taught=bool(step.teachers))
        image, target, labelled = parts
        if target is not None and (on_cpu or epoch == 0):
            # On other devices the check would wait for the last step.
            step.task.check(
                target if labelled is None else each(lambda x, chosen=labelled: x[chosen], target)
            )
        progress_so_far = (epoch + index / steps) / epochs
        try:
            if step.sharpness is not None:
                seed_step(seed, epoch, index, step.accelerator.process_index)
                step.move(*parts, progress_so_far)
            seed_step(seed, epoch, index, step.accelerator.process_index)
            loss, extra = step.forward(*parts, progress_so_far)
        except ValueError as error:
            reject_single_value(error, image)
            raise
        # A CPU checks the loss before using it. On other devices that would stall the queue: check
        # the previous step's, which is ready by now.
        value = None
        if on_cpu:
            value = _finite(loss, epoch, index)
        elif before is not None:
            value = _finite(before, epoch, index - 1)
        # The last update of an epoch may have fewer batches.
        first = index - index % step.accumulate
        together = min(step.accumulate, steps - first)
        last = index + 1 == first + together
        step.backward(loss / together, first=index == first, last=last)
        before = loss.detach()
        sums += torch.stack((before, extra.detach()))
        report_images(show, image.shape[0] * processes)
        if saver is not None and last and index + 1 < steps:
            seconds = before_that + time.perf_counter() - started
            progress = {"step": index + 1, "seconds": seconds}
            saver.after_update(together, progress, sums)
        show.step(epoch + 1, index + 1, value)
    means = step.accelerator.reduce(sums / max(1, trained), "mean")
    _finite(means[0], epoch, trained - 1)
    record: dict[str, Any] = {"epoch": epoch + 1, "loss": means[0].item()}
    if step.teachers:
        record["distillation"] = means[1].item()
    factor = step.optimizer.param_groups[0].get("factor", 1.0)
    record["lr"] = float(step.scheduler.get_last_lr()[0]) / factor
    record["images"] = images
    record["seconds"] = before_that + time.perf_counter() - started
    return record


def _finite(loss: Tensor, epoch: int, index: int) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ModelError(
            "loss",
            value,
            f"is not finite at epoch {epoch + 1}, step {index + 1}",
            "lower lr, set clip=1.0, or look for NaN in the images and the initial weights",
        )
    return value
