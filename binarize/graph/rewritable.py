"""Which forwards can be rewritten: asked when planning, so that a plan promises nothing more."""

from __future__ import annotations

from typing import Any

from torch import nn

from binarize.errors import ModelError
from binarize.graph.scopes import constants, fits, trace_scope
from binarize.graph.trace import Trace

__all__ = ["Rewritable"]


class Rewritable:
    """Answers for the forwards of one traced network, each tried once.

    Args:
        trace: The run.
        modules: All modules by path.

    Attributes:
        opaque: Causes by path of the modules whose forward cannot be rewritten.
        arguments: Per tried path the arguments that become constants of its graph.
    """

    def __init__(self, trace: Trace, modules: dict[str, nn.Module]) -> None:
        self.opaque: dict[str, str] = {}
        self.arguments: dict[str, dict[str, Any]] = {}
        self._trace = trace
        self._modules = modules

    def __call__(self, scope: str) -> bool:
        """Whether the forward of the module at ``scope`` can be rewritten."""
        if scope not in self.arguments:
            cause = self._try(scope)
            if cause is not None:
                self.opaque[scope] = cause
        return scope not in self.opaque

    def _try(self, scope: str) -> str | None:
        module = self._modules[scope]
        called = self._trace.arguments.get(scope, ((), {}))
        # Numbers stay arguments if they can. Where one chooses the way, it becomes a constant,
        # but not in the network's own signature: that is the user's to call.
        tries = [constants(module, *called)]
        if scope:
            tries.append(constants(module, *called, numbers=True))
        cause: str | None = None
        for given in tries:
            self.arguments[scope] = given
            try:
                cause = fits(trace_scope(module, given), self._trace, scope)
            except ModelError as error:
                cause = error.rule
            if cause is None:
                break
        return cause
