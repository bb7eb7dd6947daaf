"""Further tasks that share the bits of a converted network."""

from binarize.sharing.add_task import add_task

__all__ = ["add_task"]
