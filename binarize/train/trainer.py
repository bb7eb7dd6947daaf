"""Train a network, alone or from a teacher, on one or many processes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from binarize.errors import BinarizeError, DataError, ModelError
from binarize.train.batches import batch_pair
from binarize.train.checkpoint import read_checkpoint, write_checkpoint
from binarize.train.evaluation import evaluate, metrics_as_numbers
from binarize.train.optimizer import make_optimizer, make_scheduler
from binarize.train.progress import Progress, open_progress
from binarize.train.resume import checkpoint_path, restore
from binarize.train.seeding import seed_epoch
from binarize.train.task import Distillation, Task
from binarize.train.tasks import open_task, output_channels

__all__ = ["Trainer"]


class Trainer:
    """Train ``student`` on dense targets, with AdamW and OneCycle, and optionally a teacher.

    Loss = task loss with the labels + distillation loss with the teacher's prediction on the
    same augmented images. Built on Accelerate: the same script runs in one process, or in
    several through ``accelerate launch``. Everything random is derived from ``seed`` and the
    epoch's number, so a resumed run repeats what an uninterrupted one does.

    Args:
        student: The network to train; trained in place.
        teacher: A network with the same kind of output, or None. Kept in evaluation mode and
            never changed.
        task: "segmentation", "depth" or a :class:`~binarize.train.task.Task`.
        epochs: Number of passes over the training data.
        lr: Peak learning rate.
        weight_decay: For weights of float layers; norms, biases and the like get none.
        latent_weight_decay: For the latent weights of binary layers.
        warmup: Share of the steps until the peak learning rate.
        clip: Largest norm of the gradient, or None.
        distillation: The loss between student and teacher; None is the task's default, see
            :class:`~binarize.train.segmentation_distillation.SegmentationDistillation` and
            :class:`~binarize.train.depth_distillation.DepthDistillation`.
        bf16: Run the networks under bfloat16 autocast; None follows ``accelerate launch
            --mixed_precision``. Losses and metrics are always float32.
        compile: Compile the networks with ``torch.compile``.
        channels_last: Use the channels-last memory format (faster convolutions).
        output_dir: Folder for ``last.pt`` (the whole state, each epoch) and ``best.pt``.
        resume: "auto" to go on from ``output_dir`` if there is something, or a file.
        seed: Seed of shuffling, augmentation and dropout.
        num_classes: Number of classes; None asks the data set, then the network.
        ignore_index: Label of pixels that do not count.
        class_weights: One weight per class for the cross-entropy.
        max_depth: Largest depth in metres; None asks the data set, then takes 10.
        val_every: Validate after every so many epochs (and after the last).
        progress: A display, False for none, None for what fits the error stream.

    Raises:
        BinarizeError: A value is out of range, teacher and student are on different devices,
            or the task is unknown.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        teacher: nn.Module | None = None,
        task: str | Task = "segmentation",
        epochs: int = 25,
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        latent_weight_decay: float = 0.0,
        warmup: float = 0.3,
        clip: float | None = None,
        distillation: Distillation | None = None,
        bf16: bool | None = None,
        compile: bool = False,
        channels_last: bool = True,
        output_dir: str | Path | None = None,
        resume: str | Path | None = None,
        seed: int = 0,
        num_classes: int | None = None,
        ignore_index: int = 255,
        class_weights: Sequence[float] | Tensor | None = None,
        max_depth: float | None = None,
        val_every: int = 1,
        progress: Progress | bool | None = None,
    ) -> None:
        _check_numbers(epochs=epochs, val_every=val_every, lr=lr)
        _check_devices(student, teacher)
        self.student = student
        self.teacher = teacher
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.latent_weight_decay = latent_weight_decay
        self.warmup = warmup
        self.clip = clip
        self.bf16 = os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16" if bf16 is None else bf16
        self.compile = compile
        self.channels_last = channels_last
        self.output_dir = None if output_dir is None else Path(output_dir).expanduser()
        self.resume = checkpoint_path(resume, self.output_dir)
        self.seed = seed
        self.val_every = val_every
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self._task = task
        self._task_options = {
            "num_classes": num_classes,
            "ignore_index": ignore_index,
            "class_weights": class_weights,
            "max_depth": max_depth,
        }
        self._distillation = distillation
        self._progress = progress
        self._show = open_progress(False)
        # Mixed precision is ours: Accelerate would rebind the student's forward for it.
        # A static graph lets networks have layers that their forward never calls.
        self.accelerator = Accelerator(
            mixed_precision="no",
            kwargs_handlers=[DistributedDataParallelKwargs(static_graph=True)],
        )
        self.device = self.accelerator.device

    # -- public -----------------------------------------------------------------------------

    def fit(self, train_loader: Any, val_loader: Any = None) -> list[dict[str, Any]]:
        """Train for all epochs and return the history.

        Args:
            train_loader: Batches of (image, target), or dicts with "image" and "mask" or
                "depth". Its batch size is per process.
            val_loader: The same for validation, or None.

        Returns:
            One dict per epoch: ``epoch`` (from 1), ``loss``, ``distillation`` (its part of the
            loss, with a teacher), ``lr``, ``seconds``, and the validation metrics.

        Raises:
            BinarizeError: The data or the checkpoint does not fit the network or the task, or
                the loss is not finite.
        """
        task = self._open_task(train_loader)
        distillation = self._distillation or task.distillation()
        self._place()
        optimizer = make_optimizer(
            self.student, self.lr, self.weight_decay, self.latent_weight_decay
        )
        loader = prepare_data_loader(
            train_loader,
            self.device,
            put_on_device=True,
            rng_types=["generator"],
            non_blocking=True,
        )
        steps = len(loader)
        if steps == 0:
            raise DataError(
                "train_loader", 0, "has no batches", "use a smaller batch size or drop_last=False"
            )
        scheduler = make_scheduler(optimizer, self.lr, self.epochs * steps, self.warmup)
        self.history, self.best = [], None
        settings = {"task": task.name, "epochs": self.epochs, "steps": steps, "seed": self.seed}
        if self.resume is not None:
            state = read_checkpoint(self.resume)
            restore(self.resume, state, settings, self.student, optimizer, scheduler)
            self.history, self.best = state["history"], state["best"]
        network = self.accelerator.prepare_model(self.student)
        network = torch.compile(network) if self.compile else network
        self._show = open_progress(self._progress if self.accelerator.is_main_process else False)
        flags = [(module, module.training) for module in self.student.modules()]
        teacher_flags = [(m, m.training) for m in self.teacher.modules()] if self.teacher else []
        try:
            self._show.begin(self.epochs, steps, len(self.history))
            for epoch in range(len(self.history), self.epochs):
                seed_epoch(self.seed, epoch, self.accelerator.process_index, train_loader)
                record = self._epoch(
                    epoch, network, task, distillation, loader, optimizer, scheduler
                )
                last = epoch + 1 == self.epochs
                if val_loader is not None and (last or (epoch + 1) % self.val_every == 0):
                    record.update(self._validate(task, val_loader))
                self.history.append(record)
                self._remember(record, task, settings, optimizer, scheduler)
                self._show.epoch(record)
        finally:
            self._show.end()
            self._show = open_progress(False)
            for module, flag in (*flags, *teacher_flags):
                module.training = flag
            self.accelerator.free_memory()
        return self.history

    def evaluate(self, loader: Any) -> dict[str, Any]:
        """Measure the student, in float32, over all processes.

        Args:
            loader: Batches as for :meth:`fit`.

        Returns:
            ``loss`` and the task's metrics as numbers: ``mIoU``, ``pixAcc`` and ``IoU`` (a list,
            one per class) or ``δ1`` ... ``SqRel``.

        Raises:
            BinarizeError: The data does not fit the network or the task.
        """
        task = self._open_task(loader)
        self._place()
        show = open_progress(self._progress if self.accelerator.is_main_process else False)
        return metrics_as_numbers(
            evaluate(
                self.student,
                task,
                self._share(loader),
                self.device,
                self.channels_last,
                on_batch=show.evaluate,
            )
        )

    # -- one epoch --------------------------------------------------------------------------

    def _epoch(
        self,
        epoch: int,
        network: nn.Module,
        task: Task,
        distillation: Distillation,
        loader: Any,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
    ) -> dict[str, Any]:
        started = time.perf_counter()
        self.student.train()
        if self.teacher is not None:
            self.teacher.eval()
        on_cpu = self.device.type == "cpu"
        sums = torch.zeros(2, device=self.device)
        before: tuple[Tensor, int] | None = None
        steps = len(loader)
        for step, batch in enumerate(loader):
            image, target = batch_pair(batch, task.target)
            if on_cpu or epoch == 0:  # on a GPU the check waits for the device
                task.check(target)
            if self.channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            size = (target.shape[-2], target.shape[-1])
            with self._autocast():
                output = network(image)
                if self.teacher is not None:
                    with torch.no_grad():
                        taught = self.teacher(image)
            prepared = task.prepare(output, size)
            loss = task.loss(prepared, target)
            extra = torch.zeros((), device=self.device)
            if self.teacher is not None:
                done = (epoch + step / steps) / self.epochs
                extra = distillation(prepared, task.prepare(taught, size), target, done)
                loss = loss + extra
            # On a GPU look at the loss one step late, when it is there without waiting.
            watched = (loss.detach(), step) if on_cpu else before
            value = None if watched is None else _finite(watched[0], epoch, watched[1])
            before = (loss.detach(), step)
            optimizer.zero_grad(set_to_none=True)
            self.accelerator.backward(loss)
            if self.clip is not None:
                self.accelerator.clip_grad_norm_(self.student.parameters(), self.clip)
            optimizer.step()
            scheduler.step()
            sums[0] += loss.detach()
            sums[1] += extra.detach()
            self._show.step(epoch + 1, step + 1, value)
        means = self.accelerator.reduce(sums / steps, "mean").tolist()
        _finite(torch.tensor(means[0]), epoch, steps - 1)
        record: dict[str, Any] = {"epoch": epoch + 1, "loss": means[0]}
        if self.teacher is not None:
            record["distillation"] = means[1]
        record["lr"] = float(scheduler.get_last_lr()[0])
        record["seconds"] = time.perf_counter() - started
        return record

    def _validate(self, task: Task, loader: Any) -> dict[str, Any]:
        with self._autocast():
            values = evaluate(
                self.student,
                task,
                self._share(loader),
                self.device,
                self.channels_last,
                on_batch=self._show.evaluate,
            )
        numbers = metrics_as_numbers(values)
        numbers["val_loss"] = numbers.pop("loss")
        return numbers

    def _remember(
        self,
        record: dict[str, Any],
        task: Task,
        settings: dict[str, Any],
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Note the best epoch and write the files."""
        value = record.get(task.monitor)
        improved = value is not None and (
            self.best is None
            or (value > self.best["value"]) == task.higher_is_better
            and value != self.best["value"]
        )
        if improved:
            self.best = {"epoch": record["epoch"], "metric": task.monitor, "value": value}
        if self.output_dir is None:
            return
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            weights = self.student.state_dict()
            state = {
                "settings": settings,
                "history": self.history,
                "best": self.best,
                "student": weights,
            }
            if improved:
                write_checkpoint(self.output_dir / "best.pt", state)
            state["optimizer"] = optimizer.state_dict()
            state["scheduler"] = scheduler.state_dict()
            write_checkpoint(self.output_dir / "last.pt", state)

    # -- set-up -----------------------------------------------------------------------------

    def _open_task(self, loader: Any) -> Task:
        if not isinstance(self._task, str):
            return self._task
        options = dict(self._task_options)
        dataset = getattr(loader, "dataset", None)
        for name in ("num_classes", "max_depth"):
            if options[name] is None:
                options[name] = getattr(dataset, name, None) or None
        if self._task == "segmentation" and options["num_classes"] is None:
            self._place()
            options["num_classes"] = output_channels(self.student, loader, self.device)
        return open_task(self._task, **options)

    def _place(self) -> None:
        for network in (self.student, self.teacher):
            if network is None:
                continue
            network.to(self.device)
            if self.channels_last:
                network.to(memory_format=torch.channels_last)

    def _share(self, loader: Any) -> Any:
        """This process's part of a loader: each sample once, none repeated to fill up."""
        return prepare_data_loader(
            loader, self.device, put_on_device=True, even_batches=False, non_blocking=True
        )

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def _finite(loss: Tensor, epoch: int, step: int) -> float:
    value = float(loss)
    if not math.isfinite(value):
        raise ModelError(
            "loss",
            value,
            f"is not finite at epoch {epoch + 1}, step {step + 1}",
            "lower lr, set clip=1.0, or check the images for NaN",
        )
    return value


def _check_numbers(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise BinarizeError(name, value, "must be positive", "choose a larger value")


def _check_devices(student: nn.Module, teacher: nn.Module | None) -> None:
    devices = []
    for name, network in (("student", student), ("teacher", teacher)):
        found = {str(p.device) for p in network.parameters()} if network is not None else set()
        if len(found) > 1:
            raise ModelError(
                name, sorted(found), "is spread over several devices", "move it to one of them"
            )
        devices.append(next(iter(found), None))
    if None not in devices and devices[0] != devices[1]:
        raise ModelError(
            "teacher",
            devices[1],
            f"is not on the student's device {devices[0]}",
            f"move it with teacher.to({devices[0]!r})",
        )
