"""Norms that training must leave unchanged."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["frozen_norms"]


def frozen_norms(network: nn.Module) -> list[nn.Module]:
    """Return the batch norms whose statistics must not change.

    These are norms without any trainable parameter, and norms that were set to evaluation mode
    inside a network in training mode.

    Args:
        network: The network, with its user's training flags.
    """
    found: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            parameters = list(module.parameters(recurse=False))
            fixed = bool(parameters) and not any(p.requires_grad for p in parameters)
            if fixed or (network.training and not module.training):
                found.append(module)
    return found
