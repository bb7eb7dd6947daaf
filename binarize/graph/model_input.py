"""Validate the input model, unwrap it, copy it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from binarize.errors import ModelError

__all__ = ["deepcopy_model", "stated", "unwrap_model"]

_COMPILED = "_orig_mod"  # where the wrapper of torch.compile(module) keeps the module
_COMPILED_CALL = "_compiled_call_impl"  # set by module.compile()


def unwrap_model(model: Any) -> nn.Module:
    """Return the network itself, without what ``torch.compile`` adds.

    Compiled code calls the modules that it was compiled from and bypasses what is recorded or
    replaced. A network with compiled modules inside is copied, sharing its parameters and buffers.

    Raises:
        ModelError: It is not a ``torch.nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            "model", type(model).__name__, "not a torch.nn.Module", "give the network itself"
        )
    network: nn.Module = model
    while (inner := _inside(network)) is not None:
        network = inner
    if any(_inside(m) is not None or _COMPILED_CALL in vars(m) for m in network.modules()):
        shared = {id(x): x for x in (*network.parameters(), *network.buffers())}
        return deepcopy_model(network, shared)
    return network


def _inside(module: nn.Module) -> nn.Module | None:
    """Return the module inside a wrapper of ``torch.compile``."""
    return dict(module.named_children()).get(_COMPILED)


def deepcopy_model(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Deep-copy a network; compiled modules inside become plain ones.

    Tensors with a grad history, which ``copy.deepcopy`` rejects, are copied by value: the hooks
    of ``torch.nn.utils.weight_norm`` and ``spectral_norm`` leave one in every layer.

    Args:
        model: The network.
        memo: Objects to use in place of a copy, by ``id`` of the original.

    Raises:
        ModelError: It cannot be copied.
    """
    known = dict(memo or {})
    modules = list(model.modules())
    for module in modules:
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                known.setdefault(id(value), value.detach().clone())
    try:
        for module in reversed(modules):  # the innermost first
            inner = _inside(module)
            if inner is not None:
                known[id(module)] = copy.deepcopy(inner, known)
        copy_ = copy.deepcopy(model, known)
    except Exception as error:
        raise ModelError(
            "model",
            type(model).__name__,
            f"it cannot be deep-copied ({type(error).__name__}: {error})",
            "make copy.deepcopy(model) work",
        ) from error
    for module in copy_.modules():
        # torch drops it itself, but not from classes with their own __getstate__ (Lightning's);
        # there, copies would call the original.
        vars(module).pop(_COMPILED_CALL, None)
    return copy_


def stated(model: nn.Module, name: str) -> Any:
    """Return an attribute by which a network describes itself; None if it has none.

    A property of that name that raises counts as none.
    """
    try:
        return getattr(model, name, None)
    except Exception:
        return None
