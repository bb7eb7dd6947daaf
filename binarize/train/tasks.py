"""Tasks by name."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import nn

from binarize.errors import BinarizeError, DataError
from binarize.train.batches import batch_image
from binarize.train.depth import Depth
from binarize.train.modes import training_flags
from binarize.train.multilabel import MultiLabel
from binarize.train.outputs import dense_output
from binarize.train.segmentation import Segmentation
from binarize.train.task import Task

__all__ = ["open_task", "output_channels"]

_NAMES = ("segmentation", "multilabel", "depth")


def open_task(
    name: str,
    *,
    num_classes: int | None = None,
    ignore_index: int = 255,
    class_weights: Any = None,
    max_depth: float | None = None,
) -> Task:
    """Return the task of a name, with the arguments that concern it.

    Args:
        name: "segmentation", "multilabel" or "depth".
        num_classes: For segmentation, with one label or several; needed there.
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
    if name == "depth":
        return Depth(10.0 if max_depth is None else max_depth)
    near = difflib.get_close_matches(name, _NAMES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(_NAMES)}"
    raise BinarizeError("task", name, "unknown task", hint)


@torch.no_grad()
def output_channels(model: nn.Module, loader: Any, device: torch.device) -> int:
    """Return how many channels a network gives, by running it on one sample of a loader.

    Raises:
        DataError: The loader has no batch.
    """
    batch = next(iter(loader), None)
    if batch is None:
        raise DataError("loader", 0, "has no batches", "give a data set with samples")
    with training_flags(model):
        model.eval()
        output = dense_output(model(batch_image(batch)[:1].to(device)))
    return output.shape[1]
