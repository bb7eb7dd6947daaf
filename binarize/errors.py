"""The package's one exception family."""

from __future__ import annotations

__all__ = [
    "BinarizeError",
    "DataError",
    "FileError",
    "ModelError",
    "PolicyError",
    "SlowWarning",
]

_LONGEST_VALUE = 120


class BinarizeError(ValueError):
    """An error that the user can fix, in one line: argument, value, rule, remedy.

    Args:
        argument: Name of the offending argument, as the user wrote it.
        value: The value given, shown by ``repr`` and shortened to 120 characters; a value that
            is already a sentence can be passed as :class:`str` and is quoted.
        rule: The violated rule, a clause without a full stop.
        remedy: How to fix it, a clause without a full stop.
    """

    def __init__(
        self, argument: str, value: object = None, rule: str = "", remedy: str = ""
    ) -> None:
        super().__init__(argument, value, rule, remedy)
        if not rule:
            # A data loader recreates a worker process's error from its traceback alone.
            self._told = argument.strip().rpartition("\n")[2].partition(": ")[2]
        self.argument = argument
        self.value = value
        self.rule = rule
        self.remedy = remedy

    def __str__(self) -> str:
        if not self.rule:
            return self._told
        shown = " ".join(repr(self.value).split())
        if len(shown) > _LONGEST_VALUE:
            shown = shown[: _LONGEST_VALUE - 3] + "..."
        return f"{self.argument}={shown}: {self.rule}; {self.remedy}"


class PolicyError(BinarizeError):
    """A policy, a rule file or an override is invalid."""


class ModelError(BinarizeError):
    """The network or its inputs cannot be used."""


class FileError(BinarizeError):
    """A file is missing, damaged, of another kind, or does not fit the network."""


class DataError(BinarizeError):
    """A data set is missing, unreadable or has values out of range."""


class SlowWarning(UserWarning):
    """Results are correct but slower than they could be; the message says why."""
