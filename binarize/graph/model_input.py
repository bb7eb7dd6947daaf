"""Validate the input model, unwrap it, copy it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from binarize.errors import ModelError

__all__ = ["deepcopy_model", "unwrap_model"]


def unwrap_model(model: Any) -> nn.Module:
    """Return the network itself, without the wrapper of ``torch.compile``.

    Raises:
        ModelError: It is not a ``torch.nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            "model", type(model).__name__, "not a torch.nn.Module", "give the network itself"
        )
    network: nn.Module = getattr(model, "_orig_mod", model)
    return network


def deepcopy_model(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Deep-copy a network.

    Tensors with a grad history, which ``copy.deepcopy`` rejects, are copied by value: the hooks
    of ``torch.nn.utils.weight_norm`` and ``spectral_norm`` leave one in every layer.

    Args:
        model: The network.
        memo: Objects to use in place of a copy, by ``id`` of the original.

    Raises:
        ModelError: It cannot be copied.
    """
    known = dict(memo or {})
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                known.setdefault(id(value), value.detach().clone())
    try:
        return copy.deepcopy(model, known)
    except Exception as error:
        raise ModelError(
            "model",
            type(model).__name__,
            f"it cannot be deep-copied ({type(error).__name__}: {error})",
            "make copy.deepcopy(model) work",
        ) from error
