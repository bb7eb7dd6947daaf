"""Reuse of tensors as output buffers."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["buffer"]


def buffer(tensor: Tensor | None) -> Tensor | None:
    """Return the ``out`` argument for a torch function.

    Args:
        tensor: A tensor of the right shape and dtype whose values are no longer needed, or none.

    Returns:
        That tensor; None in compiled code, which manages its own buffers and in torch
        2.8 does not accept channels-last ones.
    """
    return None if torch.compiler.is_compiling() else tensor
