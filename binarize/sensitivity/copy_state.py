"""Copy trained state between converted networks that differ in one layer."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["copy_trained_state"]


@torch.no_grad()
def copy_trained_state(network: nn.Module, trained: nn.Module, site: str) -> None:
    """Copy the state of a trained 1-bit network, except for one layer, which is float here.

    Everything of the same name and shape is copied. The float layer keeps its own weights, and
    so do its norm and activation if the trained network has none there.

    Args:
        network: The network with the float layer; changed in place.
        trained: The trained network, in which that layer is binary.
        site: Dotted name of the layer.
    """
    own = {id(tensor) for tensor in network.get_submodule(site).state_dict(keep_vars=True).values()}
    known = trained.state_dict()
    for name, tensor in network.state_dict(keep_vars=True).items():
        value = known.get(name)
        if id(tensor) not in own and value is not None and value.shape == tensor.shape:
            tensor.copy_(value)
