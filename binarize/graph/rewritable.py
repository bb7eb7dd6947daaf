"""Check at planning time which forwards can be rewritten, so that a plan can be carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from binarize.errors import ModelError
from binarize.graph.scopes import ScopeGraph, ScopeGraphs, asks_for, constants, fits, place_of
from binarize.graph.trace import Trace

__all__ = ["Rewritable"]


class Rewritable:
    """Tests the forwards of one traced network, each once.

    Args:
        trace: The run.
        modules: All modules by path.
        scopes: Their graphs.

    Attributes:
        opaque: The cause by path, for modules whose forward cannot be rewritten.
        arguments: By tested path, the arguments that become constants of its graph.
        graphs: The graphs by path, for modules whose forward can be rewritten.
    """

    def __init__(self, trace: Trace, modules: Mapping[str, nn.Module], scopes: ScopeGraphs) -> None:
        self.opaque: dict[str, str] = {}
        self.arguments: dict[str, dict[str, Any]] = {}
        self.graphs: dict[str, ScopeGraph] = {}
        self._trace = trace
        self._modules = modules
        self._scopes = scopes

    def __call__(self, scope: str) -> bool:
        """Check whether the forward of the module at ``scope`` can be rewritten."""
        if scope not in self.arguments:
            cause = self._try(scope)
            if cause is not None:
                self.opaque[scope] = cause
                self.graphs.pop(scope, None)
        return scope not in self.opaque

    def _try(self, scope: str) -> str | None:
        module = self._modules[scope]
        called = self._trace.arguments.get(scope, ((), {}))
        if not scope:
            # Users call the network's own signature: whatever can stay an argument does.
            cause = self._misfit(scope, {})
            asked = [n for n, v in constants(module, *called).items() if v is None]
            if cause is None and not any(asks_for(module, name) for name in asked):
                return None
        # Numbers stay arguments if possible. One that selects the code path becomes a constant.
        cause = self._misfit(scope, constants(module, *called))
        if cause is not None:
            given = constants(module, *called, numbers=True)
            if given != self.arguments[scope] and self._misfit(scope, given) is None:
                cause = self._spare_numbers(scope, given)
        return cause

    def _spare_numbers(self, scope: str, given: dict[str, Any]) -> str | None:
        """Turn the numbers that select nothing back into arguments."""
        for name in [n for n, v in given.items() if type(v) in (int, float)]:
            others = {key: value for key, value in given.items() if key != name}
            if self._misfit(scope, others) is None:
                given = others
        return self._misfit(scope, given)

    def _misfit(self, scope: str, given: dict[str, Any]) -> str | None:
        self.arguments[scope] = given
        module = self._modules[scope]
        try:
            graph = self.graphs[scope] = self._scopes(scope, given)
        except ModelError as error:
            return error.rule
        cause = fits(graph, self._trace, scope)
        return None if cause is None else f"{cause} ({place_of(module)})"
