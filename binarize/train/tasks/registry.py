"""The tasks by name."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from binarize.errors import BinarizeError
from binarize.train.tasks.classification import Classification
from binarize.train.tasks.depth import Depth
from binarize.train.tasks.edges import Edges
from binarize.train.tasks.multilabel import MultiLabel
from binarize.train.tasks.normals import Normals
from binarize.train.tasks.protocol import Task
from binarize.train.tasks.segmentation import Segmentation

__all__ = ["open_task", "task_names"]

_TASKS: dict[str, Any] = {
    "segmentation": Segmentation,
    "multilabel": MultiLabel,
    "depth": Depth,
    "classification": Classification,
    "normals": Normals,
    "edges": Edges,
}


def task_names() -> tuple[str, ...]:
    """Return the names of the tasks."""
    return tuple(_TASKS)


def open_task(name: str, **settings: Any) -> Task:
    """Return a task by name, with the settings that apply to it.

    Args:
        name: "segmentation", "multilabel", "depth", "classification", "normals" or "edges";
            several joined by "+" are a :class:`~binarize.train.tasks.multitask.MultiTask` of heads
            with these names.
        **settings: Arguments of the tasks' classes, such as ``num_classes`` and ``max_depth``;
            those that only other tasks have are ignored, and so is None.

    Raises:
        BinarizeError: The name is unknown, no task has such a setting, or a value is out of range.
    """
    if "+" in name:
        # Here: it opens its tasks by name, too.
        from binarize.train.tasks.multitask import MultiTask

        return MultiTask({one: open_task(one, **settings) for one in name.split("+")})
    if name not in _TASKS:
        raise BinarizeError("task", name, "unknown task", _nearest(name, task_names()))
    own = {task: list(inspect.signature(kind).parameters) for task, kind in _TASKS.items()}
    known = list(dict.fromkeys(setting for names in own.values() for setting in names))
    for setting, value in settings.items():
        if setting not in known:
            raise BinarizeError(
                setting, value, "no task has such a setting", _nearest(setting, known)
            )
    given = {k: v for k, v in settings.items() if v is not None and k in own[name]}
    task: Task = _TASKS[name](**given)
    return task


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
