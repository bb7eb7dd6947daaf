"""Several processes: joined as launched, gradients averaged, buffers made equal."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from binarize.errors import BinarizeError

__all__ = [
    "average_gradients",
    "equalise",
    "is_distributed",
    "launched_accumulation",
    "launched_bf16",
    "open_accelerator",
]


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def equalise(buffers: Iterable[Tensor]) -> None:
    """Make buffers equal in all processes: the mean of floating-point ones, else the first's.

    All processes then evaluate the same network that one of them saves.

    Args:
        buffers: The tensors; changed in place.
    """
    if not is_distributed():
        return
    for buffer in buffers:
        if buffer.is_floating_point():
            wide = buffer.float() if buffer.element_size() < 4 else buffer.clone()
            dist.all_reduce(wide)
            buffer.copy_(wide / dist.get_world_size())
        else:
            whole = buffer.contiguous()
            dist.broadcast(whole, 0)
            buffer.copy_(whole)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of parameters outside the network over all processes."""
    if not is_distributed():
        return
    for parameter in parameters:
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def open_accelerator() -> Accelerator:
    """Return the accelerator of this process.

    Mixed precision is left to the trainer: Accelerate would rebind the student's forward for it.
    Data parallelism assumes a static graph, which allows layers that forward never calls.

    Raises:
        BinarizeError: The process already has an accelerator with mixed precision.
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
            "this process already has an Accelerator with mixed precision",
            "create none before the Trainer, and pass bf16=True to the Trainer",
        ) from error


def launched_bf16() -> bool:
    """Return whether ``accelerate launch`` requested bfloat16.

    Raises:
        BinarizeError: It requested a precision other than "no" and "bf16".
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
    """Return how many batches per update ``accelerate launch`` requested.

    Raises:
        BinarizeError: It is not a whole number, or below 1.
    """
    asked = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if not asked.isdecimal() or int(asked) < 1:
        raise BinarizeError(
            "gradient_accumulation_steps", asked, "must be at least 1", "launch with a number"
        )
    return int(asked)
