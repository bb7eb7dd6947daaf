"""Find the additions that close a residual block, and how much signal their branches carry.

A binary layer carries its input through its own bypass. An addition that carries the same signal
again would double it at every block, so exactly one of the two may stay.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

from torch import nn

from binarize.graph.recorder import Op
from binarize.graph.trace import Trace

__all__ = ["Shortcut", "carry", "find_shortcuts", "is_scale", "scales_of"]

_PASSING = ("activation", "drop", "pool", "shape", "cat")
_PLAIN = ("drop", "pool", "shape")

MERGED, BROKEN, GATED, WHOLE = -1, 0, 1, 2


@dataclass
class Shortcut:
    """A residual addition ``shortcut + branch``, or a difference of the two.

    Attributes:
        op: The addition.
        fork: Operation whose result both sides start from.
        branch: Position of the branch among the addition's operands.
        projection: Layer calls on the shortcut side (a 1x1 projection), if any.
        carries: How much of the fork's signal the branch delivers: ``WHOLE`` (through bypasses
            only), ``GATED`` (times a computed gate), ``BROKEN`` (a norm or a float layer between).
        after: Multiplications by numbers below 1 that alone read the sum: they turn it into a
            mean.
        last: Binary layers that end the branch.
    """

    op: Op
    fork: int
    branch: int
    projection: list[Op]
    carries: int
    after: list[Op] = field(default_factory=list)
    last: list[Op] = field(default_factory=list)


def find_shortcuts(
    trace: Trace,
    is_binary: Callable[[Op], bool],
    carries: Callable[[Op], bool],
    is_adopted: Callable[[Op], bool],
) -> list[Shortcut]:
    """Find the residual additions of a run, in order of execution.

    Args:
        trace: The run.
        is_binary: Whether a layer's call becomes binary.
        carries: Whether it becomes a binary layer with a bypass.
        is_adopted: Whether a norm's call becomes a binary layer's own norm.
    """
    found = []
    for op in trace.ops:
        if op.kind != "add" and op.name != "sub":
            continue
        if len(op.inputs) != 2 or op.inputs[0] == op.inputs[1]:
            continue
        roots = [_roots(trace, side) for side in op.inputs]
        # Try an identity on either side before a projection.
        tries = [
            (side, r)
            for projected in (False, True)
            for side in (0, 1)
            for r in roots[side]
            if bool(r[1]) is projected
        ]
        for side, (fork, projection) in tries:
            shortcut = _examine(
                trace, op, fork, 1 - side, projection, is_binary, carries, is_adopted
            )
            if shortcut is not None:
                found.append(shortcut)
                break
    return found


def _roots(trace: Trace, index: int) -> list[tuple[int, list[Op]]]:
    """Walk up a shortcut: identity, pooling, a factor, at most one 1x1 layer with a norm."""
    roots: list[tuple[int, list[Op]]] = [(index, [])]
    projection: list[Op] = []
    while True:
        op = trace.ops[index]
        if len(op.inputs) != 1:
            return roots
        if op.kind == "layer" and not projection and _is_projection(trace, op):
            projection = [op]
        elif not (op.kind in _PLAIN or is_scale(op) or (op.kind == "norm" and not projection)):
            return roots
        index = op.inputs[0]
        roots.append((index, projection))


def _is_projection(trace: Trace, op: Op) -> bool:
    module = trace.model.get_submodule(op.path or "")
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and all(
        k == 1 or k == s for k, s in zip(module.kernel_size, module.stride, strict=True)
    )


def carry(
    trace: Trace,
    fork: int,
    end: int,
    carries: Callable[[Op], bool],
    is_adopted: Callable[[Op], bool],
) -> dict[int, int]:
    """Return how much of a fork's signal reaches the operations up to ``end``.

    Args:
        trace: The run.
        fork: Index of the operation that makes the signal.
        end: Index after the last operation to look at.
        carries: Whether a layer's call becomes a binary layer with a bypass.
        is_adopted: Whether a norm's call becomes a binary layer's own norm.

    Returns:
        Per operation that the signal reaches: ``WHOLE``, ``GATED``, ``BROKEN``, or ``MERGED``
        where the only path leads through an upsampling.
    """
    state = {fork: WHOLE}
    for op in trace.ops[fork + 1 : end]:
        arriving = [state[i] for i in op.inputs if i in state]
        if not arriving:
            continue
        level = max(arriving)
        if level == MERGED or op.kind == "up":
            state[op.index] = MERGED
        elif op.kind == "layer":
            upsampling = "Transpose" in op.name
            state[op.index] = MERGED if upsampling else level if carries(op) else BROKEN
        elif op.kind == "norm":
            state[op.index] = level if is_adopted(op) else BROKEN
        elif op.kind == "mul" and op.name == "div" and not is_scale(op):
            state[op.index] = BROKEN
        elif op.kind == "mul":
            gate = len(op.inputs) > 1
            state[op.index] = min(level, GATED) if gate else level
        elif op.kind == "add":
            # A mean of two tensors weighted by a third is a gate.
            state[op.index] = level if len(op.inputs) < 3 else min(level, GATED)
        elif op.kind in _PASSING:
            state[op.index] = level
        else:
            state[op.index] = BROKEN
    return state


def is_scale(op: Op) -> bool:
    """Check whether an operation multiplies a tensor by a number, a parameter or a buffer."""
    plain = op.kind == "mul" and len(op.inputs) == 1 and op.constant
    return plain and (op.name != "div" or op.factor is not None)


def _followers(trace: Trace, op: Op) -> list[Op]:
    """Return multiplications by a number below 1 that alone read an addition's result."""
    found: list[Op] = []
    while len(trace.consumers[op.index]) == 1:
        op = trace.ops[trace.consumers[op.index][0]]
        if not is_scale(op) or op.factor is None or not 0 < op.factor < 1:
            break
        found.append(op)
    return found


def scales_of(
    trace: Trace, shortcut: Shortcut, inner: Mapping[int, Shortcut], dropped: Container[int]
) -> list[Op]:
    """Return the factors that must go with an addition: all that would then scale the signal.

    Within the branch, the signal of an inner shortcut takes the path that stays: the branch if
    the inner addition goes too, else the shortcut. A merge of several paths keeps its factors.

    Args:
        trace: The run.
        shortcut: The residual addition.
        inner: Residual additions, by index.
        dropped: Those of them that go.
    """
    found = list(shortcut.after)
    index = shortcut.op.inputs[shortcut.branch]
    while index > shortcut.fork:
        op = trace.ops[index]
        if is_scale(op):
            found.append(op)
        if op.index in inner:
            branch = inner[op.index].branch
            index = op.inputs[branch if op.index in dropped else 1 - branch]
        elif len(op.inputs) == 1:
            index = op.inputs[0]
        else:
            return found
    return found


def _examine(
    trace: Trace,
    op: Op,
    fork: int,
    branch: int,
    projection: list[Op],
    is_binary: Callable[[Op], bool],
    carries: Callable[[Op], bool],
    is_adopted: Callable[[Op], bool],
) -> Shortcut | None:
    end = op.inputs[branch]
    if end <= fork:
        return None
    state = carry(trace, fork, op.index, carries, is_adopted)
    if state.get(end, MERGED) == MERGED:
        return None
    shortcut = Shortcut(op, fork, branch, projection, state[end], _followers(trace, op))
    # Walk the branch back to the fork: its layers, and the layers that end it.
    layers: list[Op] = []
    front, seen, ended = [(end, True)], {end}, set()
    while front:
        index, at_end = front.pop()
        here = trace.ops[index]
        if here.kind == "layer":
            layers.append(here)
            if at_end and is_binary(here):
                shortcut.last.append(here)
                ended.add(index)
            at_end = False
        for source in here.inputs:
            if source in state and source != fork and source not in seen:
                seen.add(source)
                front.append((source, at_end))
    own = {p.index for p in projection}
    layers = [layer for layer in layers if layer.index not in own]
    if not any(is_binary(layer) for layer in layers):
        return None
    if projection and len(layers) == 1 and _is_projection(trace, layers[0]):
        return None
    return shortcut
