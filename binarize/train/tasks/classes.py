"""Classes: their number, and their weights from the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from binarize.data.balance import balanced_weights
from binarize.errors import DataError, ModelError

__all__ = [
    "BALANCED",
    "ClassWeights",
    "check_outputs",
    "check_weights",
    "count_classes",
    "known_classes",
    "weigh_classes",
]

BALANCED = "balanced"
"""Class weights from the frequencies in the training data."""

ClassWeights = Sequence[float] | Tensor | str | None
"""One weight per class, "balanced", or None for equal weights."""


def count_classes(dataset: Any, channels: Callable[[], int]) -> int:
    """Return the number of classes: the data set's ``num_classes``, else the network's outputs.

    Args:
        dataset: A data set, or None.
        channels: Returns the network's number of outputs.
    """
    return int(getattr(dataset, "num_classes", None) or channels())


def known_classes(count: int | None) -> int:
    """Return a task's number of classes.

    Raises:
        DataError: It is not known yet.
    """
    if count is None:
        raise DataError("num_classes", None, "is unknown", "give the task its number of classes")
    return count


def check_outputs(found: int, count: int | None, what: str = "channels") -> None:
    """Reject a network with another number of outputs than classes.

    Raises:
        DataError: The number of classes is not known yet.
        ModelError: It has another number of outputs.
    """
    if found != known_classes(count):
        raise ModelError(
            "num_classes",
            count,
            f"the network returns {found} {what}",
            "build the network with as many classes as the data has",
        )


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


def check_weights(weights: Sequence[float] | Tensor, count: int) -> Tensor:
    """Return class weights as float32 (``count``,).

    Raises:
        DataError: They are not that many numbers, or one is negative.
    """
    if isinstance(weights, str):
        raise DataError(
            "class_weights", weights, "must be numbers for this task", "give one weight per class"
        )
    made = torch.as_tensor(weights, dtype=torch.float32)
    if made.shape != (count,) or not bool((made >= 0).all()):
        raise DataError(
            "class_weights",
            made.tolist(),
            f"must be {count} numbers, none negative",
            "give one weight per class",
        )
    return made
