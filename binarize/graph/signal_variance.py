"""Estimate how far a signal's variance grows, and choose the bypasses that must go to limit it.

In networks that merge feature maps repeatedly (HRNet), the signals that the bypasses carry add
up: a merge of four feature maps in every module multiplies by four. The estimate is the standard
deviation in a random network: a norm's output has 1, and a bypass adds that of its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from binarize.graph.recorder import Op
from binarize.graph.trace import Trace

__all__ = ["LIMIT", "ends_in", "layers_without_bypass"]

# The deviation of a feature map may reach LIMIT * sqrt(n) after n binary layers.
LIMIT = 3.0

_TRANSPARENT = ("drop", "pool", "shape", "activation", "up", "mul")


def ends_in(trace: Trace, index: int, is_binary: Callable[[Op], bool]) -> list[Op]:
    """Return the binary layers whose output reaches an operation with no layer in between."""
    found: list[Op] = []
    front, seen = [index], {index}
    while front:
        op = trace.ops[front.pop()]
        if op.kind == "layer":
            if is_binary(op):
                found.append(op)
            continue
        if op.kind in (*_TRANSPARENT, "norm"):
            for source in op.inputs:
                if source not in seen:
                    seen.add(source)
                    front.append(source)
    return found


def _summands(trace: Trace, op: Op) -> tuple[int, ...]:
    """Return the summands of an operation; a sum over a stack is an addition too."""
    if op.kind == "add":
        # A weighted mean is no larger than its operands.
        return () if op.name == "lerp" else op.inputs
    stack = trace.ops[op.inputs[0]] if op.name == "sum" and len(op.inputs) == 1 else None
    if stack is None or stack.name != "stack" or op.shape != stack.in_shape:
        return ()
    return stack.inputs


def layers_without_bypass(
    trace: Trace,
    is_binary: Callable[[Op], bool],
    is_adopted: Callable[[Op], bool],
    branches: Mapping[int, int],
    shortcuts: set[int],
    bypass_removed: set[str],
    gone: set[int],
) -> set[str]:
    """Choose the binary layers that lose their bypass so that no merge amplifies the signal.

    Args:
        trace: The run.
        is_binary: Whether a layer's call becomes binary.
        is_adopted: Whether a norm's call becomes a binary layer's own norm.
        branches: Per dropped addition, the operation that replaces it.
        shortcuts: Residual additions that stay; their operands are assumed to be independent.
        bypass_removed: Layers that have already lost their bypass.
        gone: Multiplications that are dropped.

    Returns:
        Names of the additional layers.
    """
    size: list[float] = []
    depth: list[int] = []
    more: set[str] = set()

    def unit(op: Op, arriving: float) -> float:
        path = op.path or ""
        return 1.0 if path in bypass_removed or path in more else math.hypot(1.0, arriving)

    for op in trace.ops:
        arriving = [size[i] for i in op.inputs] or [1.0]
        layers = max((depth[i] for i in op.inputs), default=0)
        own = max(arriving)
        if op.kind == "layer":
            layers += is_binary(op)
            own = unit(op, own) if is_binary(op) else 1.0
        elif op.kind == "norm":
            own = own if is_adopted(op) else 1.0
        elif op.kind in ("product", "function-layer", "gate"):
            own = 1.0
        elif op.factor is not None and op.index not in gone:
            own *= min(abs(op.factor), 1.0)
        elif op.index in branches:
            own = size[branches[op.index]]
        elif op.kind == "add" and op.index in shortcuts:
            own = math.hypot(*arriving)
        elif len(summands := _summands(trace, op)) > 1:
            own = sum(size[i] for i in summands)
            if own > LIMIT * math.sqrt(max(layers, 1)):
                own = 0.0
                for source in summands:
                    last = ends_in(trace, source, is_binary)
                    more |= {layer.path or "" for layer in last}
                    own += 1.0 if last else size[source]
        size.append(own)
        depth.append(layers)
    return more
