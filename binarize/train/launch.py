"""How a training joins the processes that Accelerate has launched."""

from __future__ import annotations

import os

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from binarize.errors import BinarizeError

__all__ = ["launched_accumulation", "launched_bf16", "open_accelerator"]


def open_accelerator() -> Accelerator:
    """Return the accelerator of this process.

    Mixed precision is left to the trainer: Accelerate would rebind the student's forward for it.
    Data parallelism assumes a graph that stays the same, which lets networks have layers that
    their forward never calls.

    Raises:
        BinarizeError: The process has an accelerator with mixed precision already.
    """
    try:
        return Accelerator(
            mixed_precision="no",
            kwargs_handlers=[DistributedDataParallelKwargs(static_graph=True)],
        )
    except ValueError as error:
        if "already been initialized" not in str(error):
            raise
        raise BinarizeError(
            "Accelerator",
            "mixed_precision",
            "this process has made an Accelerator with mixed precision already",
            "make none before the Trainer, and give the Trainer bf16=True",
        ) from error


def launched_bf16() -> bool:
    """Whether ``accelerate launch`` was asked for bfloat16.

    Raises:
        BinarizeError: It was asked for a precision other than "no" and "bf16".
    """
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", "bf16"):
        raise BinarizeError(
            "mixed_precision",
            asked,
            "training runs in float32 or bfloat16",
            "launch with --mixed_precision bf16, or no",
        )
    return asked == "bf16"


def launched_accumulation() -> int:
    """How many batches ``accelerate launch`` was asked to put into one update.

    Raises:
        BinarizeError: It is no whole number, or below 1.
    """
    asked = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if not asked.isdecimal() or int(asked) < 1:
        raise BinarizeError(
            "gradient_accumulation_steps", asked, "must be at least 1", "launch with a number"
        )
    return int(asked)
