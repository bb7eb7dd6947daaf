"""What becomes of every residual addition, and of the layers and scales at it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from binarize.graph.flow import Layer
from binarize.graph.layers import scope_name
from binarize.graph.plan import CONTRACT, Decision
from binarize.graph.rewritable import Rewritable
from binarize.graph.shortcuts import BROKEN, GATED, WHOLE, Shortcut
from binarize.graph.trace import Op, Trace

__all__ = ["Settlement", "settle_shortcuts"]


@dataclass
class Settlement:
    """The outcome.

    Attributes:
        branches: Per dropped addition (index) the operation that takes its place.
        stopped: Binary layers that lose their bypass.
        projections: Per projection shortcut its action and the reason.
        alike: Per removed projection the layer whose output has its size, for counting.
        decisions: Decisions about additions and scales, with their position in the run.
    """

    branches: dict[int, int] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    projections: dict[str, tuple[str, str]] = field(default_factory=dict)
    alike: dict[str, str | None] = field(default_factory=dict)
    decisions: list[tuple[int, Decision]] = field(default_factory=list)


def settle_shortcuts(
    trace: Trace,
    shortcuts: list[Shortcut],
    layers: Mapping[str, Layer],
    is_binary: Callable[[Op], bool],
    can_rewrite: Rewritable,
) -> Settlement:
    """Decide which of two ways carries the signal: the block's addition or the units' bypasses.

    Args:
        trace: The run.
        shortcuts: Its residual additions.
        layers: Its layers by path.
        is_binary: Whether the policy makes a layer's call binary.
        can_rewrite: Tells which forwards can lose an addition.

    Returns:
        What becomes of additions, projections and scales.
    """
    result = Settlement()
    by_place: dict[tuple[str, int], list[Shortcut]] = defaultdict(list)
    for shortcut in shortcuts:
        by_place[shortcut.op.scope, shortcut.op.ordinal].append(shortcut)
    for (scope, ordinal), calls in by_place.items():
        first = calls[0]
        own = [op.path or "" for op in first.projection]
        # A projection that the policy keeps in float is the user's wish, and carries the signal.
        free = all(is_binary(op) for op in first.projection) and all(
            _only_used_here(trace, op, first.op, layers) for op in first.projection
        )
        why = _hindrance(trace, scope, calls, own, free) or (
            None if can_rewrite(scope) else can_rewrite.opaque[scope]
        )
        if why is None:
            result.branches.update({s.op.index: s.op.inputs[s.branch] for s in calls})
            for path in own:
                result.projections[path] = ("remove", "projection of a shortcut that is gone")
                result.alike[path] = _layer_alike(trace, first)
            for scale in {(s.scope, s.ordinal): s for c in calls for s in c.scales}.values():
                result.decisions.append((scale.index, _scale(scale, can_rewrite)))
            reason = "every layer of the block carries the signal by its own bypass"
        else:
            reason = why
            if min(s.carries for s in calls) > BROKEN:
                result.stopped |= {layer.path or "" for s in calls for layer in s.last}
                reason += "; the branch ends without a bypass instead"
            if free:
                for path in own:
                    result.projections[path] = ("bypass", "projection shortcut becomes the bypass")
        decision = Decision(
            site=f"{scope_name(scope)}:add#{ordinal}",
            part="addition",
            kind=first.op.name,
            action="drop" if why is None else "keep",
            reason=reason,
            rule=CONTRACT,
            scope=scope,
            ordinal=ordinal,
            rewrite=why is None,
            operand=first.branch,
        )
        result.decisions.append((first.op.index, decision))
    return result


def _hindrance(
    trace: Trace, scope: str, calls: list[Shortcut], projections: list[str], free: bool
) -> str | None:
    """Why an addition has to stay whatever its forward looks like, or ``None``."""
    carries = min(s.carries for s in calls)
    if carries == BROKEN:
        return "the branch does not carry the signal through (a norm or a float layer)"
    if carries == GATED:
        return "a gate damps the signal on the branch"
    if not free:
        return "its projection is kept, or used elsewhere too"
    if not all(path.startswith(f"{scope}." if scope else "") for path in projections):
        return "its projection belongs to another module"
    every_call = not scope or len(calls) == trace.calls.get(scope, 1)
    if not every_call or len({s.branch for s in calls}) > 1 or carries != WHOLE:
        return "it closes a block at some calls only"
    return None


def _scale(op: Op, can_rewrite: Rewritable) -> Decision:
    ok = can_rewrite(op.scope)
    return Decision(
        site=f"{scope_name(op.scope)}:mul#{op.ordinal}",
        part="scale",
        kind=op.name,
        action="drop" if ok else "keep",
        reason="scaled the branch of a shortcut that is gone",
        rule=CONTRACT,
        scope=op.scope,
        ordinal=op.ordinal,
        rewrite=ok,
    )


def _only_used_here(
    trace: Trace, projection: Op, addition: Op, layers: Mapping[str, Layer]
) -> bool:
    front = [projection.index]
    while front:
        for consumer in trace.consumers[front.pop()]:
            if consumer == addition.index:
                continue
            if trace.ops[consumer].kind not in ("norm", "drop", "shape", "pool"):
                return False
            front.append(consumer)
    return len({op.scope for op in layers[projection.path or ""].ops}) == 1


def _layer_alike(trace: Trace, shortcut: Shortcut) -> str | None:
    """The layer that ends the branch, if both sides reach the addition at their own size."""
    ends = []
    for end in shortcut.op.inputs:
        op = trace.ops[end]
        while op.kind in ("norm", "drop", "activation") and len(op.inputs) == 1:
            op = trace.ops[op.inputs[0]]
        ends.append(op)
    branch, other = ends[shortcut.branch], ends[1 - shortcut.branch]
    same = branch.shape[2:] == other.shape[2:] and len(branch.shape) > 2
    return branch.path if branch.kind == other.kind == "layer" and same else None
