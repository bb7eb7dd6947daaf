"""The other code paths of a forward, which flags and optional arguments select.

A network is planned for the arguments of one run. Its forward may do more for others: also return
feature maps (``return_feats=True``), or take a mask (``mask=None``). What a rewritten forward
loses on the path that ran, it loses on each of these, as far as they do the same.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from binarize.errors import ModelError
from binarize.graph.scopes import ScopeGraph, align, trace_scope

__all__ = ["GIVEN", "CodePath", "other_code_paths"]

# Any value but None: the argument stays an argument.
GIVEN = "given"
# A forward with more paths than this is traced for one changed argument at a time.
_MOST = 32
_MOST_VALUES = 8


@dataclass
class CodePath:
    """What a forward does for certain arguments.

    Attributes:
        values: The arguments that select it, by name: ``(value,)``, or ``GIVEN``.
        traced: Its graphs, ``None`` if it cannot be traced.
        twins: Per node of the run's graph, the node of this one.
        cause: Why it cannot be traced.
    """

    values: dict[str, Any]
    traced: ScopeGraph | None
    twins: dict[fx.Node, fx.Node]
    cause: str = ""

    def condition(self) -> str:
        """Return the Python expression that selects it."""
        return " and ".join(self.condition_on(name) for name in self.values)

    def condition_on(self, name: str) -> str:
        """Return the part of the expression about one argument."""
        value = self.values[name]
        if value is GIVEN:
            return f"{name} is not None"
        (constant,) = value
        sign = "is" if constant is None or isinstance(constant, bool) else "=="
        return f"{name} {sign} {constant!r}"


def other_code_paths(
    module: nn.Module, traced: ScopeGraph, given: Mapping[str, Any] | None = None
) -> list[CodePath]:
    """Trace a forward for other values of the arguments that select the path through it.

    Args:
        module: The module.
        traced: Its forward for the arguments of the run.
        given: The run's arguments that are constants of ``traced``.

    Returns:
        All paths, that of the run first; empty if no other value is known to have an effect.
    """
    options = _options(module, dict(given or {}))
    first = {name: values[0] for name, values in options.items()}
    paths = [CodePath(first, traced, {})]
    for values in _combinations(options):
        constants = {name: value[0] for name, value in values.items() if value is not GIVEN}
        try:
            other = trace_scope(module, constants)
        except ModelError as error:
            paths.append(CodePath(values, None, {}, error.rule))
        else:
            pairs = align(traced.graph, other.graph).items()
            twins = {node: twin for node, twin in pairs if _source(node) == _source(twin)}
            paths.append(CodePath(values, other, twins))
    complete = all(value is GIVEN or type(value[0]) in _COMPLETE for value in first.values())
    same = all(path.traced is not None and _steps(path.traced) == _steps(traced) for path in paths)
    return [] if complete and same else paths


def _source(node: fx.Node) -> str:
    """Return the module that a node's operand comes from; other modules mean other operations."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        if node.op == "call_module":
            return str(node.target)
    return ""


# All other values of these types are known.
_COMPLETE = (bool, type(None))


def _steps(traced: ScopeGraph) -> list[str]:
    return [str(g) for g in (traced.graph, traced.training) if g is not None]


def _combinations(options: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    names = list(options)
    count = 1
    for values in options.values():
        count *= len(values)
    if count <= _MOST:
        for combination in itertools.islice(itertools.product(*options.values()), 1, None):
            yield dict(zip(names, combination, strict=True))
        return
    first = {name: values[0] for name, values in options.items()}
    for name, values in options.items():
        for value in values[1:]:
            yield {**first, name: value}


def _options(module: nn.Module, given: dict[str, Any]) -> dict[str, list[Any]]:
    """Return, per argument, the values to try, that of the run first."""
    found: dict[str, list[Any]] = {}
    for name, parameter in inspect.signature(module.forward).parameters.items():
        if name not in given:
            if parameter.default is None:
                found[name] = [GIVEN, (None,)]
            continue
        value = given[name]
        if isinstance(value, bool):
            found[name] = [(value,), (not value,)]
        elif value is None:
            found[name] = [(None,), *_instead_of_none(module, given, name)]
        else:
            more = [(v,) for v in _values_in_code(module, value, parameter.default)]
            found[name] = [(value,), *more]
    return found


def _instead_of_none(module: nn.Module, given: Mapping[str, Any], name: str) -> list[Any]:
    """Return a tensor, for example; if that cannot be traced, the argument is a flag."""
    others = {key: value for key, value in given.items() if key != name}
    try:
        trace_scope(module, others)
    except ModelError:
        flags = []
        for value in (True, False):
            try:
                trace_scope(module, {**others, name: value})
            except ModelError:
                continue
            flags.append((value,))
        return flags or [GIVEN]
    return [GIVEN]


def _values_in_code(module: nn.Module, value: Any, default: Any) -> list[Any]:
    """Return other strings and integers that a forward probably compares an argument with."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    known = [default, *(code.co_consts if code is not None else ())]
    known = [x for c in known for x in (c if isinstance(c, tuple | frozenset) else (c,))]
    if type(value) is int:
        whole = sorted({x for x in known if type(x) is int and abs(x) < 100})
        known = [0, *whole, *(x + 1 for x in whole)]
    elif not isinstance(value, str):
        known = [default]
    found = dict.fromkeys(x for x in known if type(x) is type(value) and x != value)
    return list(found)[:_MOST_VALUES]
