"""Norms that a training must not touch."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["frozen_norms"]


def frozen_norms(network: nn.Module) -> list[nn.Module]:
    """Return the batch norms whose statistics must stay as they are.

    Those none of whose parameters is trained, and those that somebody has put into evaluation mode
    inside a network that is in training mode.

    Args:
        network: The network, with the training flags that its owner gave it.
    """
    found: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            parameters = list(module.parameters(recurse=False))
            fixed = bool(parameters) and not any(p.requires_grad for p in parameters)
            if fixed or (network.training and not module.training):
                found.append(module)
    return found
