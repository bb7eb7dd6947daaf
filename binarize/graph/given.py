"""Networks as users give them: refuse what is none, take wrappers off, copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn

from binarize.errors import ModelError

__all__ = ["copied", "given_network"]


def given_network(model: Any) -> nn.Module:
    """Return the network itself, without the wrapper of ``torch.compile``.

    Raises:
        ModelError: It is no network.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            "model", type(model).__name__, "not a torch.nn.Module", "give the network itself"
        )
    network: nn.Module = getattr(model, "_orig_mod", model)
    return network


def copied(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Deep-copy a network.

    Args:
        model: The network.
        memo: What stands for objects, by their identity, in place of a copy.

    Raises:
        ModelError: It cannot be copied.
    """
    try:
        return copy.deepcopy(model, dict(memo or {}))
    except Exception as error:
        raise ModelError(
            "model",
            type(model).__name__,
            f"it cannot be deep-copied ({type(error).__name__}: {error})",
            "make copy.deepcopy(model) work",
        ) from error
