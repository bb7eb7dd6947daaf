"""One run of a :class:`~binarize.train.trainer.Trainer`: from its arguments to the history."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from binarize.errors import DataError
from binarize.train.agreement import AgreementTerm
from binarize.train.batches import batch_pair, each, open_loader, read_batches, target_size, wide
from binarize.train.checkpoint import Saver, read_checkpoint, restore
from binarize.train.distillation.features import FeatureTerm
from binarize.train.norms import SynchronisedNorms, training_flags
from binarize.train.optimizer import make_optimizer, make_scheduler
from binarize.train.processes import equalise
from binarize.train.progress.displays import report_note
from binarize.train.progress.pictures import Pictures
from binarize.train.progress.run_log import RunLog
from binarize.train.schedules import Flips, TwoSteps, WeightAverage, applied
from binarize.train.seeding import seed_epoch
from binarize.train.settings import describe_run
from binarize.train.sharpness import Sharpness
from binarize.train.step import TrainStep, train_epoch
from binarize.train.tasks.multitask import choose_distillation
from binarize.train.tasks.protocol import Task
from binarize.train.teachers import Teachers

if TYPE_CHECKING:
    from binarize.train.trainer import Trainer

__all__ = [
    "evaluate",
    "is_better",
    "run",
]


def run(
    trainer: Trainer,
    train_loader: Any,
    val_loader: Any,
    task: Task,
    frozen: list[nn.Module],
    term: FeatureTerm | None,
    agreement: AgreementTerm | None = None,
) -> list[dict[str, Any]]:
    """Train for all epochs, resuming from a checkpoint if there is one.

    Args:
        trainer: Holds the settings, and receives the history.
        train_loader: As for :meth:`~binarize.train.trainer.Trainer.fit`.
        val_loader: As there.
        task: What to learn.
        frozen: Norms that stay in evaluation mode.
        term: The feature-map loss, or None.
        agreement: The penalty on differences from a base, or None.

    Returns:
        The history.
    """
    decays = trainer.weight_decay, trainer.latent_weight_decay
    learning = task if isinstance(task, nn.Module) else None
    extra = [] if term is None else term.parameters()
    extra += [] if learning is None else [p for p in learning.parameters() if p.requires_grad]
    optimizer = make_optimizer(
        trainer.student, trainer.lr, *decays, trainer.factories[0], extra, trainer.lr_factors
    )
    scheduled: list[Any] = [m for m in trainer.student.modules() if hasattr(m, "set_progress")]
    two = None
    if trainer.two_steps is not None:
        decay = trainer.weight_decay
        two = TwoSteps(trainer.student, trainer.two_steps, optimizer, decay, trainer.progressive)
        scheduled.append(two)
    loader = open_loader(train_loader, trainer.device, trainer.seed, training=True)
    steps = len(loader)
    updates = trainer.epochs * math.ceil(steps / trainer.accumulate)
    scheduler = make_scheduler(optimizer, trainer.lr, updates, trainer.warmup, trainer.factories[1])
    usual = trainer.recipe.make_distillation(task.distillation())
    distillation = choose_distillation(task, trainer._distillation, usual, trainer.taught)
    settings = describe_run(trainer, task, distillation, train_loader, steps)
    show = trainer._open_progress()
    pictures = Pictures(task, val_loader, trainer.pictures) if trainer.pictures else None
    state: dict[str, Any] = {}
    trainer.history, trainer.best = [], None
    if trainer.resume is not None:
        state = read_checkpoint(trainer.resume)
        notes = restore(trainer.resume, state, settings, trainer.student, optimizer, scheduler)
        trainer.history, trainer.best = state["history"], state["best"]
        after = f"epoch {len(trainer.history)} of {trainer.epochs}"
        if "part" in state:
            after += f", and step {state['part']['step']} of {steps} of the next"
        for line in (f"resuming after {after}", *notes):
            report_note(show, line)
    average = None if trainer.ema is None else WeightAverage(trainer.student, trainer.ema)
    if average is not None and "ema" in state:
        average.load(state["ema"])
    if term is not None and "features" in state:
        term.load(state["features"])
    if learning is not None and "task" in state:
        learning.load_state_dict(state["task"])
    flips = Flips(trainer.student) if trainer.flips else None
    if flips is not None and "flips" in state:
        flips.load(state["flips"])
    network = trainer.accelerator.prepare_model(trainer.student)
    together = trainer.accelerator.num_processes > 1
    step = TrainStep(
        torch.compile(network) if trainer.compile else network,
        [p for p in trainer.student.parameters() if p.requires_grad],
        Teachers(
            trainer.taught,
            task,
            autocast=trainer._autocast,
            reader=None if term is None else term.teacher,
            wrap=torch.compile if trainer.compile else (lambda network: network),
        ),
        task,
        distillation,
        optimizer,
        scheduler,
        trainer.accelerator,
        clip=trainer.clip,
        scheduled=scheduled,
        autocast=trainer._autocast,
        channels_last=trainer.channels_last,
        norms=SynchronisedNorms if together else nullcontext,
        accumulate=trainer.accumulate,
        no_sync=getattr(network, "no_sync", nullcontext),
        after_update=(lambda: None) if average is None else average.update,
        features=term,
        learnt=extra,
        sharpness=None if trainer.sam is None else Sharpness(trainer.student, trainer.sam),
        agreement=agreement,
    )
    parts: dict[str, Any] = {
        "ema": average and average.state,
        "features": term and term.state,
        "flips": flips and flips.state,
        # A task without state leaves the checkpoint as it was.
        "task": learning.state_dict if learning is not None and learning.state_dict() else None,
        "optimizer": optimizer.state_dict,
        "scheduler": scheduler.state_dict,
    }
    saver = Saver(
        trainer.output_dir,
        trainer.accelerator,
        lambda: {
            "settings": settings,
            "history": trainer.history,
            "best": trainer.best,
            "student": trainer.student.state_dict(),
        },
        {name: give for name, give in parts.items() if give is not None},
        every=trainer.save_every,
        keep=trainer.keep_checkpoints,
    )
    shared = None if val_loader is None else trainer._share(val_loader)
    log = None
    if trainer.output_dir is not None and trainer.accelerator.is_main_process:
        facts = {"task": task.name, "metric": task.monitor}
        log = RunLog(show, trainer.output_dir, facts, trainer.history, lambda: trainer.best)
        show = log
    try:
        base = None if agreement is None else agreement.base
        with training_flags(trainer.student, *trainer.teachers, base):
            show.begin(trainer.epochs, steps, len(trainer.history))
            # Also after a resume: the run may have stopped early before.
            stop = bool(trainer.history) and trainer._call_back()
            for epoch in range(len(trainer.history), trainer.epochs):
                if stop:
                    report_note(show, f"stopped early, after epoch {epoch} of {trainer.epochs}")
                    break
                trainer.student.train()
                for norm in frozen:
                    norm.eval()
                for teacher in trainer.teachers:
                    teacher.eval()
                seed_epoch(trainer.seed, epoch, trainer.accelerator.process_index, train_loader)
                record = train_epoch(
                    step,
                    loader,
                    epoch,
                    trainer.epochs,
                    show,
                    seed=trainer.seed,
                    part=state.pop("part", None),
                    saver=saver,
                )
                if flips is not None:
                    record.update(flips.measure())
                current = getattr(task, "current", None)
                if current is not None:
                    record.update(current())
                if two is not None and two.first:
                    record["float_weights"] = True
                equalise(trainer.student.buffers())
                if average is not None:
                    equalise(average.average.values())
                due = epoch + 1 == trainer.epochs or (epoch + 1) % trainer.val_every == 0
                if shared is not None and due:
                    with applied(average):
                        record.update(trainer._validate(task, shared, show))
                        if log is not None and pictures is not None:
                            log.draw(pictures, trainer.student, trainer.device, epoch + 1)
                improved = trainer._remember(record, task)
                saver.after_epoch(epoch + 1, improved=improved, average=average)
                show.epoch(record)
                stop = trainer._call_back()
        if log is not None:
            log.finished = True
    finally:
        show.end()
        trainer.accelerator.free_memory()
        if two is not None:
            two.end()
    if average is not None:
        average.copy_to_network()
    if trainer.select == "best" and trainer.best is not None and trainer.output_dir is not None:
        trainer.student.load_state_dict(read_checkpoint(trainer.output_dir / "best.pt")["student"])
    return trainer.history


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
            image, target = image.to(device), each(lambda x: x.to(device), target)
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
