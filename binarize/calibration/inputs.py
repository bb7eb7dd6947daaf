"""Batches as inputs of a network, which may take several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from binarize.errors import DataError
from binarize.graph.plan import Plan
from binarize.train.batches import batch_image

__all__ = ["Inputs", "read_batches"]

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments."""


def read_batches(batches: Iterable[Any], plan: Plan) -> list[Inputs]:
    """Read all batches.

    Args:
        batches: As in :func:`binarize.calibrate`.
        plan: Tells how many inputs the network takes, and their shape.

    Raises:
        DataError: There is none, or one has no inputs.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor | Mapping | str):
        raise DataError(
            "batches", type(batches).__name__, "must be a list or loader of batches", "give [batch]"
        )
    found = [_inputs(batch, plan) for batch in batches]
    found = [(args, kwargs) for args, kwargs in found if not _is_empty((*args, *kwargs.values()))]
    if not found:
        raise DataError(
            "batches",
            type(batches).__name__,
            "has no images",
            "give at least one batch with an image",
        )
    return found


def _is_empty(values: Iterable[Any]) -> bool:
    return any(isinstance(x, Tensor) and not x.numel() for x in values)


def _inputs(batch: Any, plan: Plan) -> Inputs:
    if isinstance(batch, Mapping) and "image" not in batch:
        if not any(isinstance(value, Tensor) for value in batch.values()):
            batch_image(batch)  # tells what is wrong
        return (), dict(batch)
    shapes = plan.example or ((1, 3, 1, 1),)
    if len(shapes) == 1 and len(shapes[0]) == 4:
        return (batch_image(batch),), {}
    if isinstance(batch, Mapping):
        batch = batch["image"]
    given = tuple(batch) if isinstance(batch, Sequence) else (batch,)
    values = given[: len(shapes)]
    if len(values) < len(shapes) or not all(isinstance(x, Tensor) for x in values):
        raise DataError(
            "batch",
            type(batch).__name__,
            f"must start with the network's inputs, tensors of {_spelled(shapes)}",
            "give them as a tuple, or as a dict of named inputs",
        )
    for value, shape in zip(values, shapes, strict=True):
        if value.ndim != len(shape) or not value.is_floating_point():
            raise DataError(
                "batch",
                f"{str(value.dtype).removeprefix('torch.')}{tuple(value.shape)}",
                f"must be a floating-point tensor of {len(shape)} dimensions",
                f"give inputs such as {_spelled(shapes)}",
            )
    return values, {}


def _spelled(shapes: Sequence[Sequence[int]]) -> str:
    return " and ".join("×".join(map(str, shape)) for shape in shapes)
