"""Find where a network's modules are registered, and replace them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from binarize.errors import ModelError

__all__ = ["ModuleTree", "find_module"]


def find_module(model: nn.Module, path: str) -> Any:
    """Return the module at a dotted path.

    Raises:
        ModelError: There is no such module.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ModelError(
            "model",
            type(model).__name__,
            f"it has no module {path!r}, which the plan names",
            "give the network that the plan was made for",
        ) from None


_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
)


def _transfer_hooks(old: nn.Module, new: nn.Module) -> None:
    weights = {
        key
        for key, hook in old._forward_pre_hooks.items()
        if isinstance(hook, (WeightNorm, SpectralNorm))
    }
    for name in _HOOKS:
        hooks = getattr(old, name)
        if not weights.isdisjoint(hooks):
            setattr(old, name, hooks.copy())
            for key in weights & hooks.keys():
                del hooks[key]
        # Keep the dictionary itself: a handle removes its hook from it, and a network with such
        # handles can only be copied while it lives.
        hooks.update(getattr(new, name))
        setattr(new, name, hooks)
    if old._backward_hooks:
        new._is_full_backward_hook = old._is_full_backward_hook


class ModuleTree:
    """The owners of every module, read once: a search per replacement would be quadratic.

    Args:
        model: The network; from now on, only :meth:`replace` may change its tree.

    Attributes:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._owners: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
        self._inside: dict[str, set[int]] = {}
        for owner in model.modules():
            for name, child in owner._modules.items():
                self._owners[id(child)].append((owner, name))

    def replace(self, path: str, new: nn.Module, within: str = "", *, hooks: bool = True) -> None:
        """Replace a module wherever it is registered.

        Args:
            path: Dotted path of the old module.
            new: The new module; it takes over the old one's mode.
            within: Dotted path of the module below which the old one is replaced.
            hooks: Whether the new module also takes over the old one's hooks (timm extracts
                features with hooks). Hooks that compute a weight stay with the old one.

        Raises:
            ModelError: There is no module at ``path``.
        """
        old = find_module(self.model, path)
        assert old is not self.model  # a single-layer network was rejected
        inside = self._below(within) if within else None
        # Pop even where some stay: Python may reuse the id of a deleted module.
        for owner, name in self._owners.pop(id(old)):
            if inside is None or id(owner) in inside:
                owner._modules[name] = new
                self._owners[id(new)].append((owner, name))
            else:
                self._owners[id(old)].append((owner, name))
        new.train(old.training)
        if hooks:
            _transfer_hooks(old, new)

    def _below(self, path: str) -> set[int]:
        if path not in self._inside:
            self._inside[path] = {id(m) for m in find_module(self.model, path).modules()}
        return self._inside[path]
