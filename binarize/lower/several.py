"""Several networks that run on the same input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["SeveralTasks"]


class SeveralTasks(nn.Module):
    """Networks of several tasks, called together; packed, what they have in common runs once.

    Args:
        networks: By name of the task; all take the same arguments.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        # Their names may have dots, which modules' cannot.
        self.names = tuple(networks)
        self.networks = nn.ModuleList(networks.values())

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return each network's result by name."""
        return {
            name: network(*args, **kwargs)
            for name, network in zip(self.names, self.networks, strict=True)
        }
