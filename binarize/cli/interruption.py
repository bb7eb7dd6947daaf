"""Detect whether a command was interrupted."""

from __future__ import annotations

__all__ = ["is_interruption"]


def is_interruption(error: BaseException | None) -> bool:
    """Return whether an error is an interruption, or was raised while handling one.

    Args:
        error: The error.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
