"""Multi-task learning: several heads on one backbone, with fixed or learnt weights.

Shape legend: K heads.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from binarize.errors import BinarizeError, DataError, ModelError
from binarize.train.batches import target_size
from binarize.train.checks import check_name, check_positive
from binarize.train.tasks.protocol import Distillation, Task
from binarize.train.tasks.registry import open_task

__all__ = [
    "MultiTask",
    "MultiTaskDistillation",
    "MultiTaskMetric",
    "choose_distillation",
    "heads",
    "heads_split",
    "target_of",
]

UNCERTAINTY = "uncertainty"
# Below it nothing of a batch counts: its weight then has nothing to learn from.
_NOTHING = 1e-12


class MultiTaskMetric(Metric):
    """The metrics of several tasks, each under ``head/metric``.

    Args:
        tasks: The tasks by head.
        metrics: Their metrics, in the same order.
    """

    full_state_update = False

    def __init__(self, tasks: Mapping[str, Task], metrics: Sequence[Metric]) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        self.parts = nn.ModuleList(metrics)

    def update(self, prepared: Mapping[str, Any], target: Mapping[str, Any]) -> None:
        """Count a batch of predictions by head and targets by key."""
        for (name, task), metric in zip(self.tasks.items(), self.parts, strict=True):
            task.update(metric, prepared[name], target_of(task, target))  # type: ignore[arg-type]

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all batches so far."""
        found: dict[str, Tensor] = {}
        for name, metric in zip(self.tasks, self.parts, strict=True):
            assert isinstance(metric, Metric)
            found |= {f"{name}/{key}": value for key, value in metric.compute().items()}
        return found

    def reset(self) -> None:
        """Start over."""
        super().reset()
        for metric in self.parts:
            assert isinstance(metric, Metric)
            metric.reset()


class MultiTask(nn.Module):
    """Several tasks of one network, one for each of its heads.

    The network returns a mapping with an output for each head, or a tuple in their order. Batches
    have the targets of all tasks. Where a target is unknown, its task ignores it.

    Loss = Σ_k w_k · L_k with fixed ``weights`` w. With "uncertainty" the weights are learnt
    (Kendall, Gal, Cipolla 2018, section 3): Loss = Σ_k exp(−s_k) · L_k + s_k, where s_k is a
    parameter that starts at 0 and is optimal at s_k = log L_k: each task's loss is divided by its
    own size. The paper halves the first term for regressions, which is absorbed in the scale of
    the loss. Batches in which nothing counts for a task leave its s_k unchanged. Distillation
    losses have the weights w_k or exp(−s_k), which they do not influence.

    Args:
        tasks: A task for each head, by its name: objects, or names such as "depth".
        weights: Weights by head, 1 where not given; "uncertainty" learns them; None: all 1.
        monitor: The metric that selects the best epoch, as "head/metric"; None: the first task's.
        higher_is_better: Of that metric; None where it is the one that its task monitors.

    Attributes:
        log_variances: s, (K,), with uncertainty weights; else None.

    Raises:
        BinarizeError: There is no task, or a name or value is unknown; in training and evaluation:
            there is no metric of the name ``monitor``.
    """

    name = "multitask"

    def __init__(
        self,
        tasks: Mapping[str, Task | str],
        *,
        weights: Mapping[str, float] | str | None = None,
        monitor: str | None = None,
        higher_is_better: bool | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(tasks, Mapping) or not tasks:
            shown = type(tasks).__name__ if tasks else tasks
            raise BinarizeError(
                "tasks", shown, "must be tasks by head", "give e.g. {'depth': 'depth'}"
            )
        self.tasks: dict[str, Task] = {
            name: open_task(task) if isinstance(task, str) else task for name, task in tasks.items()
        }
        self._learning = _modules(self.tasks)
        names = list(self.tasks)
        if isinstance(weights, str):
            check_name([UNCERTAINTY], weights=weights)
        elif weights is not None:
            for name, value in weights.items():
                check_name(names, weights=name)
                check_positive("omit the head to leave it out", **{f"weights[{name!r}]": value})
        keys = [_keys(task) for task in self.tasks.values()]
        self.target = tuple(dict.fromkeys(key for some in keys for key in some))
        learnt = isinstance(weights, str)
        self.weights = weights if isinstance(weights, str) or weights is None else dict(weights)
        self.log_variances = nn.Parameter(torch.zeros(len(names))) if learnt else None
        self.monitor = f"{names[0]}/{self.tasks[names[0]].monitor}" if monitor is None else monitor
        self.higher_is_better = self._direction(higher_is_better)

    def _direction(self, given: bool | None) -> bool:
        head, _, metric = self.monitor.partition("/")
        task = self.tasks.get(head)
        if task is None:
            usual = [f"{name}/{task.monitor}" for name, task in self.tasks.items()]
            raise BinarizeError(
                "monitor", self.monitor, "must be head/metric", f"use e.g. {' or '.join(usual)}"
            )
        if given is not None:
            return given
        if metric != task.monitor:
            raise BinarizeError(
                "higher_is_better",
                None,
                f"is unknown for {self.monitor}",
                "give True or False, or monitor " + f"{head}/{task.monitor}",
            )
        return task.higher_is_better

    def complete(
        self, dataset: Any, output: Callable[[], Any], *, balance: float = 0.0
    ) -> MultiTask:
        """Return the tasks with what was left open; see ``Task``. Parameters are shared."""
        made = copy.copy(self)
        made.tasks = {}
        for name, task in self.tasks.items():
            if hasattr(task, "complete"):
                head = functools.partial(self._output, output, name)
                task = task.complete(dataset, head, balance=balance)
            made.tasks[name] = task
        made._check_monitor()
        return made

    def _check_monitor(self) -> None:
        head = self.monitor.partition("/")[0]
        metric = self.tasks[head].metric(torch.device("cpu"))
        for part in metric.modules():
            if isinstance(part, Metric):
                part.sync_on_compute = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nothing is counted yet
            known = [f"{head}/{key}" for key, value in metric.compute().items() if not value.ndim]
        if self.monitor not in known:
            raise BinarizeError(
                "monitor", self.monitor, "unknown metric", f"use one of {', '.join(known)}"
            )

    def _output(self, output: Callable[[], Any], name: str) -> Any:
        return self._head(output(), name)

    def _head(self, output: Any, name: str) -> Any:
        """Return the output of one head.

        Raises:
            ModelError: The network has no such head.
        """
        names = list(self.tasks)
        if isinstance(output, Mapping) and name in output:
            return output[name]
        if isinstance(output, tuple | list) and len(output) == len(names):
            return output[names.index(name)]
        shown: Any = type(output).__name__
        if isinstance(output, Mapping):
            shown = list(output)
        elif isinstance(output, tuple | list):
            shown = f"{len(output)} outputs"
        raise ModelError(
            "output",
            shown,
            f"has no head {name!r}",
            f"return a dict or a tuple of {', '.join(names)}",
        )

    def prepare(self, output: Any, size: tuple[int, int]) -> dict[str, Any]:
        """Return what the tasks make of the heads' outputs, by head.

        Raises:
            ModelError: A head is missing, or does not fit its task.
        """
        return {
            name: task.prepare(self._head(output, name), size) for name, task in self.tasks.items()
        }

    def check(self, target: Mapping[str, Any]) -> None:
        """Reject targets that a task rejects, and dense targets of several sizes.

        Raises:
            DataError: There is such a target.
        """
        for task in self.tasks.values():
            task.check(target_of(task, target))
        dense = {key: value for key, value in target.items() if value.ndim >= 3}
        sizes = {key: target_size(value, value) for key, value in dense.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(
                "targets",
                ", ".join(f"{key} {rows}x{columns}" for key, (rows, columns) in sizes.items()),
                "differ in rows x columns",
                "resize them to one size",
            )

    def loss(self, prepared: Mapping[str, Any], target: Mapping[str, Any]) -> Tensor:
        """Return the weighted sum of the tasks' losses."""
        losses = [
            task.loss(prepared[name], target_of(task, target)) for name, task in self.tasks.items()
        ]
        return self._sum(torch.stack(losses))

    def _sum(self, losses: Tensor) -> Tensor:
        if self.log_variances is None:
            return (losses * self._factors(losses)).sum()
        s = self.log_variances.to(losses.dtype)
        counts = losses.detach() > _NOTHING
        # Multiplied, not selected: every parameter has a gradient, as processes expect.
        return (counts * (torch.exp(-s) * losses + s) + ~counts * losses).sum()

    def _factors(self, like: Tensor) -> Tensor:
        """Return the current weights (K,)."""
        if self.log_variances is not None:
            return torch.exp(-self.log_variances.detach()).to(like)
        given = self.weights if isinstance(self.weights, dict) else {}
        return like.new_tensor([given.get(name, 1.0) for name in self.tasks])

    def current(self) -> dict[str, Any]:
        """Return the learnt weights for the history, as ``task_weights`` by head."""
        if self.log_variances is None:
            return {}
        values = torch.exp(-self.log_variances.detach()).tolist()
        return {"task_weights": dict(zip(self.tasks, values, strict=True))}

    def metric(self, device: torch.device) -> Metric:
        """Return an empty :class:`MultiTaskMetric`."""
        parts = [task.metric(device) for task in self.tasks.values()]
        return MultiTaskMetric(self.tasks, parts).to(device)

    def update(
        self, metric: Metric, prepared: Mapping[str, Any], target: Mapping[str, Any]
    ) -> None:
        """Count a batch."""
        metric.update(prepared, target)

    def decode(self, output: Any, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Return the predictions by head."""
        return {
            name: task.decode(self._head(output, name), size) for name, task in self.tasks.items()
        }

    def distillation(self) -> MultiTaskDistillation:
        """Return the tasks' default distillation losses, with the weights of the tasks."""
        return MultiTaskDistillation(
            {name: task.distillation() for name, task in self.tasks.items()}, self
        )


class MultiTaskDistillation:
    """A distillation loss for each head of a :class:`MultiTask`.

    Args:
        parts: The losses by head; heads without one are not distilled.
        task: The task, for its weights and targets.

    Raises:
        BinarizeError: There is no head of a name.
    """

    def __init__(self, parts: Mapping[str, Distillation], task: MultiTask) -> None:
        for name in parts:
            check_name(list(task.tasks), parts=name)
        if not parts:
            rule = "there is no loss for any head"
            raise BinarizeError("distillation", "{}", rule, "give no teacher, or a loss for a head")
        self.parts = dict(parts)
        self.task = task

    def __call__(
        self, student: Mapping[str, Any], teacher: Mapping[str, Any], target: Any, done: float
    ) -> Tensor:
        """Return the weighted sum of the heads' losses at training progress ``done``."""
        losses = {
            name: part(
                student[name],
                teacher[name],
                None if target is None else target_of(self.task.tasks[name], target),
                done,
            )
            for name, part in self.parts.items()
        }
        factors = dict(
            zip(self.task.tasks, self.task._factors(next(iter(losses.values()))), strict=True)
        )
        return torch.stack([factors[name] * loss for name, loss in losses.items()]).sum()


def choose_distillation(
    task: Task,
    given: Distillation | Mapping[str, Distillation | None] | None,
    usual: Any,
    taught: Collection[str],
) -> Any:
    """Return the distillation loss of a run.

    Args:
        task: The task.
        given: The loss; losses by head, which replace the usual ones, None for no distillation of
            the head; or None.
        usual: The loss if none is given.
        taught: Heads that have a teacher; "" are all.

    Raises:
        BinarizeError: The losses are given by head, and the task has one only; there is no head of
            a name, or it has no teacher; or no head is left.
    """
    if isinstance(given, Mapping):
        if not isinstance(usual, MultiTaskDistillation):
            rule = f"{task.name} has no heads"
            raise BinarizeError("distillation", list(given), rule, "give the loss itself")
        for name in given:
            check_name(list(usual.task.tasks), distillation=name)
        kept = {name: part for name, part in usual.parts.items() if name not in given}
        chosen = {name: part for name, part in given.items() if part is not None}
        asked, usual = list(chosen), MultiTaskDistillation({**kept, **chosen}, usual.task)
    elif given is not None:
        usual = given
        asked = list(given.parts) if isinstance(given, MultiTaskDistillation) else []
    else:
        asked = []
    if not taught or "" in taught or not isinstance(usual, MultiTaskDistillation):
        return usual
    for name in asked:
        if name not in taught:
            known = ", ".join(taught)
            raise BinarizeError(
                "distillation", name, "has no teacher", f"give it one besides those of {known}"
            )
    parts = {name: part for name, part in usual.parts.items() if name in taught}
    return MultiTaskDistillation(parts, usual.task)


def _keys(task: Task) -> tuple[str, ...]:
    return (task.target,) if isinstance(task.target, str) else task.target


def heads(task: Any) -> Mapping[str, Task]:
    """Return the tasks of a network by head; "" is the only one's."""
    several: Mapping[str, Task] | None = getattr(task, "tasks", None)
    return {"": task} if several is None else several


def heads_split(task: Any) -> Callable[[Any], Sequence[Any]] | None:
    """Return what splits a network's output into those of its heads; None with one head.

    The output of a network for one of the tasks, which has no heads, stays whole.
    """
    if not isinstance(task, MultiTask) or len(task.tasks) == 1:
        return None

    def split(output: Any) -> Sequence[Any]:
        try:
            return [task._head(output, name) for name in task.tasks]
        except ModelError:
            return [output]

    return split


def target_of(task: Task, targets: Mapping[str, Any]) -> Any:
    """Return the task's part of the targets."""
    if isinstance(task.target, str):
        return targets[task.target]
    return {key: targets[key] for key in task.target}


def _modules(tasks: Mapping[str, Task]) -> nn.ModuleList:
    """Return the tasks with parameters of their own."""
    return nn.ModuleList(task for task in tasks.values() if isinstance(task, nn.Module))
