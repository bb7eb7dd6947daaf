"""The one exception a user of the package has to catch, and its few children."""

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
    """A mistake the user can mend, told in one line: argument, value, rule, remedy.

    Args:
        argument: Name of the offending argument, as the user wrote it.
        value: What was given. Shown by ``repr``, shortened to 120 characters; a value that
            is already a sentence can be passed as :class:`str` and is quoted.
        rule: The rule that was broken, a clause without a full stop.
        remedy: What to do about it, a clause without a full stop.
    """

    def __init__(
        self, argument: str, value: object = None, rule: str = "", remedy: str = ""
    ) -> None:
        super().__init__(argument, value, rule, remedy)
        if not rule:
            # A data loader makes an error of a worker process anew, of its traceback alone.
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
    """A policy, a rule file or an override is wrong."""


class ModelError(BinarizeError):
    """The network, or the inputs given with it, cannot be used."""


class FileError(BinarizeError):
    """A file is missing, damaged, foreign or does not fit the network."""


class DataError(BinarizeError):
    """A data set is missing, unreadable or has values out of range."""


class SlowWarning(UserWarning):
    """Results are right, but come more slowly than they could: the message says why."""
