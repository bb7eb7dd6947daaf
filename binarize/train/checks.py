"""Refuse arguments that no training could run with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from binarize.errors import BinarizeError, DataError, ModelError

__all__ = [
    "check_devices",
    "check_name",
    "check_not_negative",
    "check_positive",
    "check_targets",
    "loader_length",
    "refuse_features",
    "teachers_of",
]


def check_positive(remedy: str = "choose a larger value", /, **values: float) -> None:
    """Refuse values that are not greater than zero.

    Args:
        remedy: What to do about it.
        **values: The values by their arguments' names.

    Raises:
        BinarizeError: One of them is not; NaN is not either.
    """
    for name, value in values.items():
        if not value > 0:
            raise BinarizeError(name, value, "must be positive", remedy)


def check_not_negative(remedy: str = "use 0 to turn it off", /, **values: float) -> None:
    """Refuse values below zero.

    Args:
        remedy: What to do about it.
        **values: The values by their arguments' names.

    Raises:
        BinarizeError: One of them is; NaN is refused, too.
    """
    for name, value in values.items():
        if not value >= 0:
            raise BinarizeError(name, value, "must not be negative", remedy)


def check_name(known: Sequence[str], /, **values: str) -> None:
    """Refuse names that are not known.

    Args:
        known: The names there are.
        **values: The names given, by their arguments' names.

    Raises:
        BinarizeError: One of them is not.
    """
    for name, value in values.items():
        if value not in known:
            raise BinarizeError(name, value, "unknown name", f"use one of {', '.join(known)}")


def check_devices(student: nn.Module, teacher: nn.Module | None) -> None:
    """Refuse networks that are not each on one device, the same for both.

    Raises:
        ModelError: They are spread, or apart.
    """
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
            f"is not on the student's device, {devices[0]}",
            f"move it with teacher.to({devices[0]!r})",
        )


def teachers_of(teacher: nn.Module | Sequence[nn.Module] | None) -> list[nn.Module]:
    """The teachers as a list.

    Raises:
        ModelError: One of them is no network.
    """
    if teacher is None:
        return []
    found = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
    for one in found:
        if not isinstance(one, nn.Module):
            raise ModelError(
                "teacher", type(one).__name__, "is no network", "give an nn.Module, or several"
            )
    return found


def refuse_features(features: Any, teachers: Sequence[nn.Module], compiled: bool) -> None:
    """Refuse a loss between feature maps that nobody could be asked for.

    Raises:
        BinarizeError: There is no teacher, or the networks are compiled.
    """
    if features is None:
        return
    if not teachers:
        raise BinarizeError("features", "given", "needs a teacher", "give the Trainer a teacher")
    if compiled:
        raise BinarizeError(
            "compile", True, "feature maps cannot be read in compiled networks", "leave it out"
        )


def loader_length(loader: Any, name: str) -> int:
    """Return the number of batches of a loader, at least 1.

    Raises:
        DataError: It has none, or does not know.
    """
    try:
        length = len(loader)
    except TypeError:
        raise DataError(
            name,
            type(loader).__name__,
            "does not know its length, which the learning rate's schedule needs",
            "use a map-style data set",
        ) from None
    if length == 0:
        raise DataError(name, 0, "has no batches", "use a smaller batch size, or drop_last=False")
    return length


def check_targets(loader: Any) -> None:
    """Refuse a data set with nothing to learn, if it can tell.

    Raises:
        DataError: A class has no labelled pixel, or no depth is in range.
    """
    check = getattr(getattr(loader, "dataset", None), "check_targets", None)
    if check is not None:
        check()
