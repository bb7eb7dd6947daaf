"""Train a network, with or without a teacher, in one or many processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from binarize.errors import BinarizeError, DataError
from binarize.train.agreement import Agreement, check_agreement
from binarize.train.batches import batch_image, open_loader
from binarize.train.bop import Bop
from binarize.train.checkpoint import checkpoint_path, parse_every, reject_other_run, stamp
from binarize.train.checks import (
    check_devices,
    check_features,
    check_not_negative,
    check_positive,
    check_targets,
    loader_length,
)
from binarize.train.distillation.features import FeatureDistillation, FeatureTerm
from binarize.train.norms import frozen_norms, training_flags
from binarize.train.optimizer import (
    OptimizerFactory,
    SchedulerFactory,
)
from binarize.train.processes import launched_accumulation, launched_bf16, open_accelerator
from binarize.train.progress.callbacks import Callback
from binarize.train.progress.displays import Progress, open_progress
from binarize.train.recipes import DEFAULT, Recipe, load_recipe
from binarize.train.run import evaluate, is_better, run
from binarize.train.tasks.classes import BALANCED
from binarize.train.tasks.multitask import heads_split
from binarize.train.tasks.protocol import Distillation, Task
from binarize.train.tasks.registry import open_task
from binarize.train.teachers import Teacher, teachers_by_head

__all__ = ["Trainer"]


class Trainer:
    """Train ``student`` with AdamW and OneCycle, optionally by distillation from a teacher.

    Loss = task loss with the labels + distillation loss with the teacher's prediction on the
    same augmented images. Built on Accelerate: the same script runs in one process, or in
    several through ``accelerate launch``. All randomness is derived from ``seed`` and the
    numbers of epoch, step and sample, so a resumed run matches an uninterrupted one, with
    any number of loader workers. Batch norm statistics are synchronised over processes.
    Before every step, student modules with a method ``set_progress(done)`` receive the training
    progress from 0 to 1 (annealed surrogates). Batch norms without a trainable parameter,
    and those in evaluation mode inside a network in training mode, keep their statistics.

    Args:
        student: The network to train; trained in place.
        teacher: A network with the same kind of output, several of them (their mean output is
            distilled), these by head for a task with several heads, or None. A head's teacher may
            be a network of its task alone; heads without one learn from labels only. Kept in
            evaluation mode and never changed. With a teacher, images without labels can be used,
            too.
        task: "segmentation", "multilabel", "depth", "classification" or a
            :class:`~binarize.train.tasks.Task`.
        recipe: Supplies all arguments below that are None: a bundled name
            (``binarize recipes ls``), a file, or a :class:`~binarize.train.recipes.Recipe`. The
            default is the one with the best measured result.
        epochs: Number of passes over the training data; None: the recipe's.
        lr: Peak learning rate; None: the recipe's.
        weight_decay: For weights of float layers (not norms, biases and the like); None: the
            recipe's.
        latent_weight_decay: For the latent weights of binary layers; None: the recipe's.
        warmup: Fraction of the steps until the peak learning rate; None: the recipe's.
        clip: Maximum gradient norm, or None.
        accumulate: Batches per update; None follows ``accelerate launch
            --gradient_accumulation_steps``.
        sam: Radius ρ of sharpness-aware minimisation, such as 0.05, which takes two passes per
            step; see :class:`~binarize.train.sharpness.Sharpness`. None: plain steps.
        ema: Decay of a running average of the weights, such as 0.999. The average is validated,
            saved as the best, and in the student after :meth:`fit`. None: no average.
        lr_factors: Learning-rate multipliers for "latent" weights of binary layers,
            their "thresholds" (and scales), and the "rest"; see
            :func:`~binarize.train.optimizer.parameter_groups`. None: 1 for all.
        two_steps: Fraction of the training in which binary layers have binary activations and float
            weights; then both are binary, and latent weights no longer decay. Validation in the
            first step uses the float weights and never counts as the best. None:
            both binary from the start.
        progressive: With ``two_steps``, one layer's weights after the other become binary during
            the first step, in the order of the modules, instead of all at its end.
        flips: Record in the history the fraction of binary weights that changed sign in each epoch:
            ``flip_ratio``, and per layer ``flips``.
        optimizer: Creates the optimizer from (parameter groups, ``lr``); None is AdamW, and
            :class:`~binarize.train.bop.Bop` flips binary weights. The groups have their
            ``weight_decay``.
        scheduler: Creates the scheduler from (optimizer, number of updates), which steps once per
            update; None is OneCycle.
        callbacks: Called after each epoch with (trainer, its history entry); see
            :mod:`binarize.train.progress`.
        distillation: The loss between student and teacher; None is the recipe's for the task, see
            :class:`~binarize.train.tasks.segmentation.SegmentationDistillation` and
            :class:`~binarize.train.tasks.depth.DepthDistillation`. A mapping by head replaces the
            losses of these heads; None there is no distillation of the head.
        features: The loss between feature maps of student and (first) teacher; None is the
            recipe's, usually none.
        agreement: Penalty on binarized inputs in which a further task differs from its base, see
            :class:`~binarize.train.agreement.Agreement`. None: none.
        bf16: Run the networks under bfloat16 autocast; None follows ``accelerate launch
            --mixed_precision``. Losses and metrics are always float32.
        compile: Compile the networks with ``torch.compile``.
        channels_last: Use the channels-last memory format (faster convolutions).
        output_dir: Folder for ``last.pt`` (the whole state, each epoch) and ``best.pt``, and to
            look at, also while training: ``history.json`` and ``curves.png`` (``binarize view``
            shows them as a page).
        save_every: Also write ``last.pt`` within epochs: after a time ("90s", "10min", "1h") or a
            number of batches, at the next update. Resuming from there gives the same
            weights and history as an uninterrupted run.
        keep_checkpoints: How many epochs to keep; with 2 and more, the newest are ``epoch-0001.pt``
            and so on, and ``resume`` takes any of them.
        resume: "auto" to continue from ``output_dir`` if it has a checkpoint, or a file. Settings
            that affect what is learnt must match the checkpoint's.
        overwrite: Start over in an ``output_dir`` that holds a run.
        settings: Further settings that a resumed run must share, as plain values by
            name (such as the policy); written into the checkpoints.
        seed: Seed of shuffling, augmentation and dropout.
        balance: Balanced class weights are class frequencies to the power −``balance``; 0: equal
            weights; None: the recipe's. They are the default of "segmentation" by name, and of
            :class:`~binarize.train.tasks.segmentation.Segmentation` if it asks for them.
        val_every: Validate after every so many epochs (and after the last).
        pictures: With ``output_dir``, write what the network predicts for so many validation images
            into ``pictures/`` at each validation: input, ground truth and prediction.
        select: The student's weights after :meth:`fit`: of the "last" epoch, or of the
            "best" validation (read from ``output_dir``).
        progress: A display, or False for none. None shows bars if the error stream is a terminal,
            and else logs a line per epoch (logger ``binarize.train``, level INFO); True writes
            these lines to the error stream.
        **task_settings: Settings of a task that is given by name, such as ``num_classes``,
            ``ignore_index``, ``class_weights`` or ``max_depth``. What is not given comes from
            the data set, then from the network.

    Raises:
        BinarizeError: A value is out of range, teacher and student are on different devices,
            or the task is unknown.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        teacher: Teacher | Mapping[str, Teacher] | None = None,
        task: str | Task = "segmentation",
        recipe: str | Path | Recipe = DEFAULT,
        epochs: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        latent_weight_decay: float | None = None,
        warmup: float | None = None,
        clip: float | None = None,
        accumulate: int | None = None,
        sam: float | None = None,
        ema: float | None = None,
        lr_factors: Mapping[str, float] | None = None,
        two_steps: float | None = None,
        progressive: bool = False,
        flips: bool = False,
        optimizer: OptimizerFactory | None = None,
        scheduler: SchedulerFactory | None = None,
        callbacks: Sequence[Callback] = (),
        distillation: Distillation | Mapping[str, Distillation | None] | None = None,
        features: FeatureDistillation | None = None,
        agreement: Agreement | None = None,
        bf16: bool | None = None,
        compile: bool = False,
        channels_last: bool = True,
        output_dir: str | Path | None = None,
        save_every: str | int | None = None,
        keep_checkpoints: int = 1,
        resume: str | Path | None = None,
        overwrite: bool = False,
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
        balance: float | None = None,
        val_every: int = 1,
        pictures: int = 0,
        select: str = "last",
        progress: Progress | bool | None = None,
        **task_settings: Any,
    ) -> None:
        self._task = _named(task, task_settings)
        self._fitted: Task | None = None
        self.recipe = load_recipe(recipe)
        given: dict[str, Any] = {
            "epochs": epochs,
            "lr": lr,
            "weight_decay": weight_decay,
            "latent_weight_decay": latent_weight_decay,
            "warmup": warmup,
            "balance": balance,
        }
        chosen = {k: self.recipe.training[k] if v is None else v for k, v in given.items()}
        check_positive(epochs=chosen["epochs"], val_every=val_every, lr=chosen["lr"])
        check_not_negative(balance=chosen["balance"], pictures=pictures)
        self.taught = teachers_by_head(teacher, self._task)
        some = (one for found in self.taught.values() for one in found)
        self.teachers = list(dict.fromkeys(some))
        for one in (None, *self.teachers):
            check_devices(student, one)
        if select not in ("last", "best") or (select == "best" and output_dir is None):
            raise BinarizeError(
                "select", select, "must be 'last', or 'best' with an output_dir", "give the folder"
            )
        self.factories = optimizer, scheduler
        self.callbacks = list(callbacks)
        self.student = student
        self.teacher = next(iter(self.teachers), None)
        self.features = self.recipe.make_features() if features is None else features
        check_features(self.features if self.teachers else features, self.teachers, compile)
        check_agreement(agreement, compile)
        self.agreement = agreement
        self.epochs: int = chosen["epochs"]
        self.lr: float = chosen["lr"]
        self.weight_decay: float = chosen["weight_decay"]
        self.latent_weight_decay: float = chosen["latent_weight_decay"]
        self.warmup: float = chosen["warmup"]
        self.balance: float = chosen["balance"]
        self.clip = clip
        self.accumulate = launched_accumulation() if accumulate is None else accumulate
        check_positive("use 1 for an update after each batch", accumulate=self.accumulate)
        if sam is not None:
            check_positive("use e.g. 0.05", sam=sam)
        self.sam = sam
        self.ema = ema
        self.lr_factors = None if lr_factors is None else dict(lr_factors)
        if progressive and two_steps is None:
            raise BinarizeError(
                "progressive", True, "is a way of two_steps", "give two_steps as well, e.g. 0.5"
            )
        if isinstance(optimizer, Bop) and two_steps is not None:
            raise BinarizeError(
                "two_steps", two_steps, "trains float weights, which Bop only flips", "omit one"
            )
        self.two_steps = two_steps
        self.progressive = progressive
        self.flips = flips
        self.bf16 = launched_bf16() if bf16 is None else bf16
        self.compile = compile
        self.channels_last = channels_last
        self.output_dir = None if output_dir is None else Path(output_dir).expanduser()
        parse_every(save_every)
        check_positive("keep 1", keep_checkpoints=keep_checkpoints)
        if save_every is not None and output_dir is None:
            raise BinarizeError("save_every", save_every, "needs output_dir", "give the folder")
        if pictures and output_dir is None:
            raise BinarizeError("pictures", pictures, "needs output_dir", "give the folder")
        self.pictures = pictures
        self.save_every = save_every
        self.keep_checkpoints = keep_checkpoints
        self.resume = checkpoint_path(resume, self.output_dir)
        self.overwrite = overwrite
        self.settings = dict(settings or {})
        self.seed = seed
        self.val_every = val_every
        self.select = select
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self._distillation = distillation
        self._progress = progress
        # Existing files are not from this run.
        self._found = None if self.output_dir is None else stamp(self.output_dir / "last.pt")
        self.accelerator = open_accelerator()
        self.device = self.accelerator.device

    def fit(self, train_loader: Any, val_loader: Any = None) -> list[dict[str, Any]]:
        """Train for all epochs and return the history.

        Args:
            train_loader: Batches of (image, target), or dicts with "image" and "mask" or
                "depth"; with a teacher also images alone, and dicts whose "labelled" (N,) says
                which images have a target (:class:`binarize.data.PartlyLabelled`). Its
                batch size is per process; it is split over the processes, without a
                distributed sampler.
            val_loader: The same for validation, or None.

        Returns:
            One dict per epoch: ``epoch`` (from 1), ``loss``, ``distillation`` (its part of the
            loss, with a teacher), ``lr``, ``images``, ``seconds`` of training, and after a
            validation ``val_loss`` and the metrics.

        Raises:
            BinarizeError: The data or the checkpoint does not fit the network or the task, or
                the loss is not finite.
        """
        loader_length(train_loader, "train_loader")
        if self.output_dir is not None and not (
            self.overwrite or self.resume or self.has_checkpoint
        ):
            reject_other_run(self.output_dir)
        check_targets(train_loader)
        frozen = frozen_norms(self.student)
        task = self.open_task(train_loader, training=True)
        self._place()
        agreed = None if self.agreement is None else self.agreement.open(self.student)
        term = self._open_features(train_loader)
        try:
            return run(self, train_loader, val_loader, task, frozen, term, agreed)
        finally:
            if term is not None:
                term.close()

    def evaluate(self, loader: Any) -> dict[str, Any]:
        """Evaluate the student in float32, over all processes.

        Args:
            loader: Batches as for :meth:`fit`.

        Returns:
            ``loss`` and the task's metrics as numbers: ``mIoU``, ``pixAcc`` and ``IoU`` (a list,
            one per class) or ``δ1`` ... ``SqRel``.

        Raises:
            BinarizeError: The data does not fit the network or the task.
        """
        loader_length(loader, "loader")
        task = self.open_task(loader)
        self._place()
        show = self._open_progress()
        try:
            return evaluate(
                self.student,
                task,
                self._share(loader),
                self.device,
                channels_last=self.channels_last,
                on_batch=show.evaluate,
            )
        finally:
            show.end()

    @property
    def has_checkpoint(self) -> bool:
        """Return whether ``output_dir`` holds a checkpoint to resume from."""
        if self.output_dir is None:
            return False
        now = stamp(self.output_dir / "last.pt")
        return now is not None and (self.resume is not None or now != self._found)

    def _validate(self, task: Task, loader: Any, show: Progress) -> dict[str, Any]:
        values = evaluate(
            self.student,
            task,
            loader,
            self.device,
            channels_last=self.channels_last,
            autocast=self._autocast,
            on_batch=show.evaluate,
        )
        return {"val_loss": values.pop("loss"), **values}

    def _remember(self, record: dict[str, Any], task: Task) -> bool:
        """Add an epoch to the history, and return whether it is the best so far."""
        self.history.append(record)
        value = record.get(task.monitor)
        if value is None or "float_weights" in record:  # what is saved is the binary form
            return False
        improved = is_better(value, self.best, task.higher_is_better)
        if improved:
            self.best = {"epoch": record["epoch"], "metric": task.monitor, "value": value}
        return improved

    def _call_back(self) -> bool:
        """Call all callbacks, and return whether one of them wants to stop."""
        answers = [call(self, self.history[-1]) for call in self.callbacks]
        return any(answers)

    def open_task(self, loader: Any, *, training: bool = False) -> Task:
        """Return the task with all its settings; after a training, the task that was trained.

        Args:
            loader: Batches as for :meth:`fit`; what the task leaves open is asked of its data set,
                then of the student.
            training: Whether it is for training, where classes may have weights.
        """
        if training or self._fitted is None:
            complete = getattr(self._task, "complete", None)
            if complete is None:
                task = self._task
            else:
                dataset = getattr(loader, "dataset", None)
                balance = self.balance if training else 0.0
                task = complete(dataset, lambda: self._sample_output(loader), balance=balance)
        else:
            task = self._fitted
        if training:
            self._fitted = task
        if isinstance(task, nn.Module):
            task.to(self.device)
        return task

    @torch.no_grad()
    def _sample_output(self, loader: Any) -> Any:
        """Return the student's output for one image of a loader."""
        batch = next(iter(loader), None)
        if batch is None:
            raise DataError("loader", 0, "has no batches", "give a data set with samples")
        self._place()
        with training_flags(self.student):
            self.student.eval()
            return self.student(batch_image(batch)[:1].to(self.device))

    def _place(self) -> None:
        bases = () if self.agreement is None else (self.agreement.base,)
        for network in (self.student, *self.teachers, *bases):
            network.to(self.device)
            if self.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _open_features(self, loader: Any) -> FeatureTerm | None:
        if self.features is None or self.teacher is None:
            return None
        image = batch_image(next(iter(loader)))[:1].to(self.device)
        return self.features.open(self.student, self.teacher, image, heads_split(self._task))

    def _share(self, loader: Any) -> Any:
        """Return this process's part of a loader: each sample once, none repeated to fill up."""
        return open_loader(loader, self.device, self.seed, training=False)

    def _open_progress(self) -> Progress:
        return open_progress(self._progress if self.accelerator.is_main_process else False)

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def _named(task: str | Task, settings: Mapping[str, Any]) -> Task:
    """Return the task, opened with its settings if it is given by name."""
    if isinstance(task, str):
        usual = {"class_weights": BALANCED} if "segmentation" in task.split("+") else {}
        given = {name: value for name, value in settings.items() if value is not None}
        return open_task(task, **{**usual, **given})
    for name, value in settings.items():
        raise BinarizeError(
            name,
            value,
            "the Trainer has no such argument, and the task has its own settings",
            f"give it to the task, as {type(task).__name__}({name}=...)",
        )
    return task
