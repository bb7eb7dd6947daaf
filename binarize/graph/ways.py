"""The other ways through a forward, which flags and optional arguments choose.

A network is planned for the arguments of one run. Its forward may do more for others: return
feature maps too (``return_feats=True``), or take a mask (``mask=None``). What a rewritten forward
loses on the way that ran, it loses on each of these, as far as they do the same.
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

__all__ = ["GIVEN", "Way", "other_ways"]

# Anything but None: the argument stays one.
GIVEN = "given"
# A forward with more ways than this is traced for one change of an argument at a time.
_MOST = 32
_MOST_VALUES = 8


@dataclass
class Way:
    """What a forward does for certain arguments.

    Attributes:
        values: By name the arguments that choose it: ``(value,)``, or ``GIVEN``.
        traced: Its graphs, ``None`` if it cannot be traced.
        twins: Its node per node of the graph of the run.
        cause: Why it cannot be traced.
    """

    values: dict[str, Any]
    traced: ScopeGraph | None
    twins: dict[fx.Node, fx.Node]
    cause: str = ""

    def condition(self) -> str:
        """The Python expression that chooses it."""
        return " and ".join(self.condition_on(name) for name in self.values)

    def condition_on(self, name: str) -> str:
        """The part of it that is about one argument."""
        value = self.values[name]
        if value is GIVEN:
            return f"{name} is not None"
        (constant,) = value
        sign = "is" if constant is None or isinstance(constant, bool) else "=="
        return f"{name} {sign} {constant!r}"


def other_ways(
    module: nn.Module, traced: ScopeGraph, given: Mapping[str, Any] | None = None
) -> list[Way]:
    """Trace a forward for other values of the arguments that choose the way through it.

    Args:
        module: The module.
        traced: Its forward for the arguments of the run.
        given: The run's arguments that are constants of ``traced``.

    Returns:
        All ways, that of the run first; empty if no other value is known to be of any effect.
    """
    options = _options(module, dict(given or {}))
    first = {name: values[0] for name, values in options.items()}
    ways = [Way(first, traced, {})]
    for values in _combinations(options):
        constants = {name: value[0] for name, value in values.items() if value is not GIVEN}
        try:
            other = trace_scope(module, constants)
        except ModelError as error:
            ways.append(Way(values, None, {}, error.rule))
        else:
            pairs = align(traced.graph, other.graph).items()
            twins = {node: twin for node, twin in pairs if _source(node) == _source(twin)}
            ways.append(Way(values, other, twins))
    complete = all(value is GIVEN or type(value[0]) in _COMPLETE for value in first.values())
    same = all(way.traced is not None and _steps(way.traced) == _steps(traced) for way in ways)
    return [] if complete and same else ways


def _source(node: fx.Node) -> str:
    """The module that a node's operand comes of; what follows another one is another thing."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        if node.op == "call_module":
            return str(node.target)
    return ""


# All other values of these are known.
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
    """Per argument the values to try, that of the run first."""
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
    """A tensor, say; where that cannot be traced, the argument is a flag."""
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
    """Other strings and whole numbers that a forward compares an argument with, presumably."""
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
