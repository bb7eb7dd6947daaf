"""Whether a command ends because somebody interrupted it."""

from __future__ import annotations

__all__ = ["is_interruption"]


def is_interruption(error: BaseException | None) -> bool:
    """Whether an error is an interruption, or came up while one went through somebody's clean-up.

    Args:
        error: What was raised.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
