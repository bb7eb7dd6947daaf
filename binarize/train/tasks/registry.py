"""The tasks by name, and what they take from a data set."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import nn

from binarize.data.balance import balanced_weights
from binarize.errors import BinarizeError, DataError
from binarize.train.batches import batch_image, class_scores, dense_output
from binarize.train.norms import training_flags
from binarize.train.tasks.classification import Classification
from binarize.train.tasks.depth import Depth
from binarize.train.tasks.multilabel import MultiLabel
from binarize.train.tasks.protocol import Task
from binarize.train.tasks.segmentation import Segmentation

__all__ = [
    "open_task",
    "output_channels",
    "weigh_classes",
]

_NAMES = ("segmentation", "multilabel", "depth", "classification")


def open_task(
    name: str,
    *,
    num_classes: int | None = None,
    ignore_index: int = 255,
    class_weights: Any = None,
    max_depth: float | None = None,
) -> Task:
    """Return a task by name, with the arguments that apply to it.

    Args:
        name: "segmentation", "multilabel", "depth" or "classification".
        num_classes: Required for all but depth.
        ignore_index: For segmentation.
        class_weights: For segmentation.
        max_depth: For depth, metres; None is 10.

    Raises:
        BinarizeError: The name is unknown, or segmentation has no number of classes.
    """
    if name in ("segmentation", "multilabel"):
        if num_classes is None:
            raise DataError("num_classes", None, f"{name} needs it", "give a number")
        kind = MultiLabel if name == "multilabel" else Segmentation
        return kind(num_classes, ignore_index=ignore_index, class_weights=class_weights)
    if name == "classification":
        if num_classes is None:
            raise DataError("num_classes", None, "classification needs it", "give a number")
        return Classification(num_classes)
    if name == "depth":
        return Depth(10.0 if max_depth is None else max_depth)
    near = difflib.get_close_matches(name, _NAMES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(_NAMES)}"
    raise BinarizeError("task", name, "unknown task", hint)


@torch.no_grad()
def output_channels(
    model: nn.Module, loader: Any, device: torch.device, *, dense: bool = True
) -> int:
    """Return a network's number of output channels or classes, from a run on one sample.

    Raises:
        DataError: The loader has no batch.
    """
    batch = next(iter(loader), None)
    if batch is None:
        raise DataError("loader", 0, "has no batches", "give a data set with samples")
    with training_flags(model):
        model.eval()
        output = model(batch_image(batch)[:1].to(device))
        output = dense_output(output) if dense else class_scores(output)
    channels: int = output.shape[1]
    return channels


def weigh_classes(dataset: Any, num_classes: int | None, power: float) -> list[float] | None:
    """Return class weights from class frequencies in a data set; None if those are unknown.

    Args:
        dataset: A data set; frequencies are known if it has ``class_counts``.
        num_classes: Number of classes; a single class needs no weight.
        power: See :func:`binarize.data.balanced_weights`.
    """
    keys = getattr(dataset, "keys", None)
    if isinstance(keys, frozenset) and "mask" not in keys:
        return None
    if not hasattr(dataset, "class_counts") or num_classes is None or num_classes < 2:
        return None
    counts = dataset.class_counts()
    weights: list[float] = balanced_weights(counts, power).tolist()
    return weights if len(weights) == num_classes else None
