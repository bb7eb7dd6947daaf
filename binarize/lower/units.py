"""Calls of the 1-bit kernels as nodes of a recorded graph."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from binarize.kernels.activation import shifted_prelu
from binarize.kernels.int8 import int8_layer
from binarize.kernels.ops import run_unit, unit

__all__ = ["arguments", "is_call", "replace_call", "result", "set_arguments", "units", "value_of"]

_NAMES: dict[Any, list[str]] = {
    op: [a.name for a in op._schema.arguments] for op in (unit, shifted_prelu, int8_layer)
}
_NAMES[run_unit] = _NAMES[unit]
_DEFAULTS = {a.name: a.default_value for a in unit._schema.arguments if a.has_default_value()}


def is_call(node: Any, *targets: Any) -> bool:
    """Check whether a node calls one of these operators."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def units(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the calls of the binary kernel in order; the graph may change meanwhile."""
    yield from [node for node in graph.nodes if is_call(node, unit, run_unit)]


def arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a kernel call by name; lists are copies."""
    target: Any = node.target
    names = _NAMES[target]
    given = [*node.args, *(_DEFAULTS[name] for name in names[len(node.args) :])]
    values = dict(zip(names, given, strict=True))
    return {k: list(v) if isinstance(v, list | tuple) else v for k, v in values.items()}


def result(node: fx.Node, index: int) -> fx.Node:
    """Return the node of a call's first (the feature map) or second result (its means)."""
    for user in node.users:
        if is_call(user, operator.getitem) and user.args[1] == index:
            return user
    with node.graph.inserting_after(node):
        item = node.graph.call_function(operator.getitem, (node, index))
    item.meta["value"] = node.meta["value"][index]
    return item


def set_arguments(node: fx.Node, given: dict[str, Any]) -> None:
    """Give a kernel call other arguments, which are computed before it."""
    target: Any = node.target
    node.args = tuple(given[name] for name in _NAMES[target])


def replace_call(node: fx.Node, given: dict[str, Any], before: fx.Node) -> fx.Node:
    """Move a kernel call to a later position, with other arguments.

    Args:
        node: The call; it is erased.
        given: The arguments, all of them.
        before: The node before which the new call is inserted.

    Returns:
        The new call. Its results replace those of the old one for all readers.
    """
    graph = node.graph
    with graph.inserting_before(before):
        target: Any = node.target
        new = graph.call_function(target, tuple(given[name] for name in _NAMES[target]))
        new.meta["value"] = node.meta["value"]
        for user in list(node.users):
            item = graph.call_function(operator.getitem, (new, user.args[1]))
            item.meta["value"] = user.meta["value"]
            user.replace_all_uses_with(item)
            graph.erase_node(user)
    graph.erase_node(node)
    return new


def value_of(node: fx.Node) -> torch.Tensor:
    """Return an empty tensor with the shape and dtype of a node's result."""
    value: torch.Tensor = node.meta["value"]
    return value
