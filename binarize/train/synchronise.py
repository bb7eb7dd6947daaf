"""Batch norms synchronised over all processes, and equal buffers in all of them.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_reduce
from torch.overrides import TorchFunctionMode

__all__ = ["SynchronisedNorms", "equalise", "is_distributed"]


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
