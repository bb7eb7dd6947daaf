"""Validate training arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from binarize.errors import BinarizeError, DataError, ModelError

__all__ = [
    "check_devices",
    "check_features",
    "check_name",
    "check_not_negative",
    "check_positive",
    "check_targets",
    "loader_length",
]


def check_positive(remedy: str = "choose a larger value", /, **values: float) -> None:
    """Reject values that are not greater than zero.

    Args:
        remedy: What to do about it.
        **values: The values by their arguments' names.

    Raises:
        BinarizeError: One of them is not positive, or NaN.
    """
    for name, value in values.items():
        if not value > 0:
            raise BinarizeError(name, value, "must be positive", remedy)


def check_not_negative(remedy: str = "use 0 to turn it off", /, **values: float) -> None:
    """Reject values below zero.

    Args:
        remedy: What to do about it.
        **values: The values by their arguments' names.

    Raises:
        BinarizeError: One of them is negative, or NaN.
    """
    for name, value in values.items():
        if not value >= 0:
            raise BinarizeError(name, value, "must not be negative", remedy)


def check_name(known: Sequence[str], /, **values: str) -> None:
    """Reject unknown names.

    Args:
        known: The known names.
        **values: The given names, by their arguments' names.

    Raises:
        BinarizeError: One of them is unknown.
    """
    for name, value in values.items():
        if value not in known:
            raise BinarizeError(name, value, "unknown name", f"use one of {', '.join(known)}")


def check_devices(student: nn.Module, teacher: nn.Module | None) -> None:
    """Reject networks that are not entirely on one common device.

    Raises:
        ModelError: One is spread over devices, or they are on different ones.
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


def check_features(features: Any, teachers: Sequence[nn.Module], compiled: bool) -> None:
    """Reject a feature-map loss that cannot be computed.

    Raises:
        BinarizeError: There is no teacher, or the networks are compiled.
    """
    if features is None:
        return
    if not teachers:
        raise BinarizeError("features", "given", "needs a teacher", "give the Trainer a teacher")
    if compiled:
        raise BinarizeError(
            "compile", True, "feature maps cannot be read in compiled networks", "omit it"
        )


def loader_length(loader: Any, name: str) -> int:
    """Return the number of batches of a loader, at least 1.

    Raises:
        DataError: It has none, or no length.
    """
    try:
        length = len(loader)
    except TypeError:
        raise DataError(
            name,
            type(loader).__name__,
            "has no length, which the learning-rate schedule needs",
            "use a map-style data set",
        ) from None
    if length == 0:
        raise DataError(name, 0, "has no batches", "use a smaller batch size, or drop_last=False")
    return length


def check_targets(loader: Any) -> None:
    """Reject a data set with nothing to learn, if it can tell.

    Raises:
        DataError: A class has no labelled pixel, or no depth is in range.
    """
    check = getattr(getattr(loader, "dataset", None), "check_targets", None)
    if check is not None:
        check()
