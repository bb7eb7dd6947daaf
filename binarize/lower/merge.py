"""Compute once what several networks in one graph have in common."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, fx

from binarize.lower.record import Recording

__all__ = ["merge_equal"]


def merge_equal(recording: Recording) -> None:
    """Merge constants with equal values, and calls of one operator with equal operands, in place.

    The graph has no side effects, so results stay the same to the last bit.

    Args:
        recording: The graph.
    """
    graph = recording.graph
    known: dict[Any, fx.Node] = {}
    for node in list(graph.nodes):
        key = _key(node, recording)
        if key is None:
            continue
        first = known.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _key(node: fx.Node, recording: Recording) -> Any:
    """Return what tells whether two nodes have the same value; ``None`` if nothing does."""
    if node.op == "get_attr":
        return _constant(recording.constants[str(node.target)])
    tags = getattr(node.target, "tags", ())
    if node.op != "call_function" or torch.Tag.nondeterministic_seeded in tags:
        return None
    try:
        key = node.target, _frozen(node.args), _frozen(node.kwargs)
        hash(key)
    except TypeError:
        return None
    return key


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple((key, _frozen(value[key])) for key in sorted(value))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    # 1, 1.0 and True are equal, but other operands.
    return type(value), value


def _constant(value: Tensor) -> Any:
    layout = value.dtype, value.device, tuple(value.shape), value.stride()
    content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return layout, hashlib.sha256(content).digest()
