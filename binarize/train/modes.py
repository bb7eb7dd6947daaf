"""Restore networks' training flags after a change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["training_flags"]


@contextmanager
def training_flags(*networks: nn.Module | None) -> Iterator[None]:
    """Restore each module's ``training`` flag on exit, also after an error."""
    flags = [
        (module, module.training)
        for network in networks
        if network is not None
        for module in network.modules()
    ]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
