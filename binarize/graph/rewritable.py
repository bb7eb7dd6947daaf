"""Which forwards can be rewritten: asked when planning, so that a plan promises nothing more."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from binarize.errors import ModelError
from binarize.graph.scopes import ScopeGraph, asks_for, constants, fits, trace_scope
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
        graphs: Per path whose forward can be rewritten its graphs.
    """

    def __init__(self, trace: Trace, modules: dict[str, nn.Module]) -> None:
        self.opaque: dict[str, str] = {}
        self.arguments: dict[str, dict[str, Any]] = {}
        self.graphs: dict[str, ScopeGraph] = {}
        self._trace = trace
        self._modules = modules

    def __call__(self, scope: str) -> bool:
        """Whether the forward of the module at ``scope`` can be rewritten."""
        if scope not in self.arguments:
            cause = self._try(scope)
            if cause is not None:
                self.opaque[scope] = cause
                self.graphs.pop(scope, None)
        return scope not in self.opaque

    def _try(self, scope: str) -> str | None:
        module = self._modules[scope]
        if not scope:
            return self._try_root(module)
        called = self._trace.arguments.get(scope, ((), {}))
        # Numbers stay arguments if they can. Where one chooses the way, it becomes a constant.
        cause: str | None = None
        for numbers in (False, True):
            given = constants(module, *called, numbers=numbers)
            cause = self._misfit(scope, given)
            if cause is None:
                break
        return cause

    def _try_root(self, module: nn.Module) -> str | None:
        """The network's own signature is the user's to call: none of it becomes a constant."""
        cause = self._misfit("", {})
        for name, parameter in inspect.signature(module.forward).parameters.items():
            if cause is None and parameter.default is None and asks_for(module, name):
                cause = f"its forward asks whether {name!r} is given"
        return cause

    def _misfit(self, scope: str, given: dict[str, Any]) -> str | None:
        self.arguments[scope] = given
        try:
            graph = self.graphs[scope] = trace_scope(self._modules[scope], given)
        except ModelError as error:
            return error.rule
        return fits(graph, self._trace, scope)
