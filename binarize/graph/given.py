"""Networks as users give them: refuse what is none, take wrappers off, copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from binarize.errors import ModelError

__all__ = ["copied", "given_network", "stated"]

_COMPILED = "_orig_mod"  # where the wrapper of torch.compile(module) has the module
_COMPILED_CALL = "_compiled_call_impl"  # of module.compile()


def given_network(model: Any) -> nn.Module:
    """Return the network itself, without what ``torch.compile`` adds.

    Compiled code calls the modules that it was made from, and knows nothing of what is recorded or
    changed. A network with compiled modules inside is copied, sharing its parameters and buffers.

    Raises:
        ModelError: It is no network.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(
            "model", type(model).__name__, "not a torch.nn.Module", "give the network itself"
        )
    network: nn.Module = model
    while (inner := _inside(network)) is not None:
        network = inner
    if any(_inside(m) is not None or _COMPILED_CALL in vars(m) for m in network.modules()):
        return copied(network, {id(x): x for x in (*network.parameters(), *network.buffers())})
    return network


def _inside(module: nn.Module) -> nn.Module | None:
    """The module in a wrapper of ``torch.compile``."""
    return module._modules.get(_COMPILED)


def copied(model: nn.Module, memo: Mapping[int, Any] | None = None) -> nn.Module:
    """Deep-copy a network; compiled modules inside become plain ones.

    Tensors with a history, which ``copy.deepcopy`` refuses, are copied by their values: the hooks
    of ``torch.nn.utils.weight_norm`` and ``spectral_norm`` leave one in every layer.

    Args:
        model: The network.
        memo: What stands for objects, by their identity, in place of a copy.

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
    """Return what a network says of itself in an attribute; None if it has none.

    The user's property of that name may fail, and is no affair of ours then.
    """
    try:
        return getattr(model, name, None)
    except Exception:
        return None
