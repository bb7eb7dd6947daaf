"""Several processes: joined as launched, batch norms synchronised, buffers made equal.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from torch.distributed.nn.functional import all_reduce
from torch.overrides import TorchFunctionMode

from binarize.errors import BinarizeError

__all__ = [
    "SynchronisedNorms",
    "equalise",
    "is_distributed",
    "launched_accumulation",
    "launched_bf16",
    "open_accelerator",
]


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class SynchronisedNorms(TorchFunctionMode):
    """Context in which batch norms in training mode use statistics over all processes.

    It replaces the function, not modules, so that it covers every class of norm on every device
    and leaves the network unchanged.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Replace batch norms, and leave everything else unchanged."""
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` with the mean and variance of all processes' inputs (N, C, ...)."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    x = input.float() if input.element_size() < 4 else input
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = x.numel() / x.shape[1]
    totals = all_reduce(torch.cat((x.sum(dims), x.new_full((1,), count))))
    number = totals[-1].detach()
    mean = totals[:-1] / number
    centred = x - mean.view(shape)
    # A second pass: squares minus the square of the mean would cancel.
    variance = all_reduce(centred.square().sum(dims)) / number
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            unbiased = variance * (number / (number - 1).clamp(min=1))
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_(unbiased.to(running_var.dtype), momentum)
    out = centred * (variance + eps).rsqrt().view(shape)
    if weight is not None:
        out = out * weight.view(shape)
    if bias is not None:
        out = out + bias.view(shape)
    return out.to(input.dtype)


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
