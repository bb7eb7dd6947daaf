"""Tensors to write into, where there is a choice."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["buffer"]


def buffer(tensor: Tensor | None) -> Tensor | None:
    """What a function of torch is given as its ``out``.

    Args:
        tensor: A tensor of the right shape and dtype whose values are no longer needed, or none.

    Returns:
        That tensor; none in code that is compiled, which finds buffers of its own and, in torch
        2.8, accepts none that is channels last.
    """
    return None if torch.compiler.is_compiling() else tensor
