"""Where a network's modules are registered, so that one can be exchanged for another."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from torch import nn

from binarize.errors import ModelError

__all__ = ["Places", "find_module"]


def find_module(model: nn.Module, path: str) -> Any:
    """The module at a dotted path.

    Raises:
        ModelError: There is none.
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


class Places:
    """The owners of every module, read once: a search per exchange would be quadratic.

    Args:
        model: The network; only :meth:`exchange` may change its tree from now on.

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

    def exchange(self, path: str, new: nn.Module, within: str = "") -> None:
        """Put a module in another's place, and wherever else that one is registered.

        Args:
            path: Dotted path of the old module.
            new: The new one; it takes over the old one's mode.
            within: Dotted path of the module below which the old one is exchanged.

        Raises:
            ModelError: There is no module at ``path``, or it is the network itself.
        """
        old = find_module(self.model, path)
        if old is self.model:
            raise ModelError(
                "model",
                type(old).__name__,
                "the network is a single layer",
                "wrap it: torch.nn.Sequential(layer)",
            )
        inside = self._below(within) if within else None
        # Popped even where some stay: the identity of a module that is gone may be used again.
        for owner, name in self._owners.pop(id(old)):
            if inside is None or id(owner) in inside:
                owner._modules[name] = new
                self._owners[id(new)].append((owner, name))
            else:
                self._owners[id(old)].append((owner, name))
        new.train(old.training)

    def _below(self, path: str) -> set[int]:
        if path not in self._inside:
            self._inside[path] = {id(m) for m in find_module(self.model, path).modules()}
        return self._inside[path]
