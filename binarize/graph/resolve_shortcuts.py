"""Decide what happens to every residual addition, and to the layers and scales around it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from binarize.graph.decisions import CONTRACT, AdditionDecision, OperationDecision, ScaleDecision
from binarize.graph.flow import Layer
from binarize.graph.layers import scope_name
from binarize.graph.recorder import Op
from binarize.graph.rewritable import Rewritable
from binarize.graph.shortcuts import BROKEN, GATED, WHOLE, Shortcut, is_scale, scales_of
from binarize.graph.trace import Trace

__all__ = ["ShortcutResolution", "resolve_shortcuts"]


@dataclass
class ShortcutResolution:
    """The result.

    Attributes:
        branches: Per dropped addition (index), the operation that replaces it.
        bypass_removed: Binary layers that lose their bypass.
        projections: Per projection shortcut, its action and the reason.
        alike: Per removed projection, the layer whose output has its size, for counting.
        scales: Multiplications (index) that are dropped with them.
        decisions: Decisions about additions and scales, each with its position in the run.
    """

    branches: dict[int, int] = field(default_factory=dict)
    bypass_removed: set[str] = field(default_factory=set)
    projections: dict[str, tuple[str, str]] = field(default_factory=dict)
    alike: dict[str, str | None] = field(default_factory=dict)
    scales: set[int] = field(default_factory=set)
    decisions: list[tuple[int, OperationDecision]] = field(default_factory=list)


def resolve_shortcuts(
    trace: Trace,
    shortcuts: list[Shortcut],
    layers: Mapping[str, Layer],
    is_binary: Callable[[Op], bool],
    can_rewrite: Rewritable,
) -> ShortcutResolution:
    """Decide what carries the signal: the block's addition or the bypasses of its layers.

    Args:
        trace: The run.
        shortcuts: The residual additions of the run.
        layers: The layers of the run, by path.
        is_binary: Whether the policy makes a layer's call binary.
        can_rewrite: Tests whether a forward can lose an addition.

    Returns:
        What happens to additions, projections and scales.
    """
    result = ShortcutResolution()
    by_place: dict[_Place, list[Shortcut]] = defaultdict(list)
    for shortcut in shortcuts:
        by_place[_place(shortcut.op)].append(shortcut)
    # A projection that the policy keeps in float is the user's choice, and carries the signal.
    loose = {
        place: all(
            is_binary(op) and _only_used_here(trace, op, calls[0].op, layers)
            for op in calls[0].projection
        )
        for place, calls in by_place.items()
    }
    causes = {
        place: _hindrance(trace, place[0], calls, loose[place])
        or (None if can_rewrite(place[0]) else can_rewrite.opaque[place[0]])
        for place, calls in by_place.items()
    }
    scales = _scales_to_drop(trace, by_place, causes, can_rewrite)
    result.decisions += [(op.index, _scale(op)) for op in scales]
    result.scales = {op.index for op in trace.ops if _place(op) in {_place(s) for s in scales}}
    for place, calls in by_place.items():
        (scope, name, ordinal), first = place, calls[0]
        own = [op.path or "" for op in first.projection]
        free, why = loose[place], causes[place]
        if why is None:
            result.branches.update({s.op.index: s.op.inputs[s.branch] for s in calls})
            for path in own:
                result.projections[path] = ("remove", "projection of a removed shortcut")
                result.alike[path] = _layer_alike(trace, first)
            reason = "every layer of the block carries the signal through its own bypass"
        else:
            reason = why
            if min(s.carries for s in calls) > BROKEN:
                result.bypass_removed |= {layer.path or "" for s in calls for layer in s.last}
                reason += "; the branch ends without a bypass instead"
            if free:
                for path in own:
                    result.projections[path] = ("bypass", "projection shortcut becomes the bypass")
        decision = AdditionDecision(
            site=f"{scope_name(scope)}:{name}#{ordinal}",
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


# Scope, name of the operation and its ordinal: one place in the code, whatever its calls.
_Place = tuple[str, str, int]


def _place(op: Op) -> _Place:
    return op.scope, "sub" if op.name == "sub" else op.kind, op.ordinal


def _scales_to_drop(
    trace: Trace,
    by_place: Mapping[_Place, list[Shortcut]],
    causes: dict[_Place, str | None],
    can_rewrite: Rewritable,
) -> list[Op]:
    """Return the factors that are dropped with their additions; one op for each place in the code.

    A factor that stayed would damp the signal at every block: if it must stay, so must its
    addition, which is noted in ``causes``.
    """
    shortcuts = {s.op.index: s for calls in by_place.values() for s in calls}
    while True:
        dropped = {
            s.op.index for place, calls in by_place.items() if not causes[place] for s in calls
        }
        needed = {i: scales_of(trace, shortcuts[i], shortcuts, dropped) for i in dropped}
        going = {op.index: op for ops in needed.values() for op in ops}
        staying = {_place(op) for op in trace.ops if is_scale(op) and op.index not in going}
        late = {
            place
            for place, calls in by_place.items()
            if not causes[place]
            for s in calls
            for op in needed[s.op.index]
            if _place(op) in staying or not can_rewrite(op.scope)
        }
        if not late:
            return list({_place(op): op for _, op in sorted(going.items(), reverse=True)}.values())
        causes.update(dict.fromkeys(late, "a factor that damps the signal there has to stay"))


def _hindrance(trace: Trace, scope: str, calls: list[Shortcut], free: bool) -> str | None:
    """Return why an addition must stay whatever its forward looks like, or ``None``."""
    if any(s.op.name == "sub" for s in calls):
        return "it subtracts, and the branch alone would change its sign"
    projections = [op.path or "" for op in calls[0].projection]
    carries = min(s.carries for s in calls)
    if carries == BROKEN:
        return "the branch does not carry the signal through (a norm or a float layer)"
    if carries == GATED:
        return "a gate damps the signal on the branch"
    if not free:
        return "its projection is kept, or also used elsewhere"
    if not all(path.startswith(f"{scope}." if scope else "") for path in projections):
        return "its projection belongs to another module"
    every_call = not scope or len(calls) == trace.calls.get(scope, 1)
    if not every_call or len({s.branch for s in calls}) > 1 or carries != WHOLE:
        return "it closes a block only at some calls"
    return None


def _scale(op: Op) -> ScaleDecision:
    return ScaleDecision(
        site=f"{scope_name(op.scope)}:mul#{op.ordinal}",
        kind=op.name,
        action="drop",
        reason="scaled the branch or the sum of a removed shortcut",
        rule=CONTRACT,
        scope=op.scope,
        ordinal=op.ordinal,
        rewrite=True,
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
    """Return the layer that ends the branch if both operands reach the addition at full size."""
    ends = []
    for end in shortcut.op.inputs:
        op = trace.ops[end]
        while op.kind in ("norm", "drop", "activation") and len(op.inputs) == 1:
            op = trace.ops[op.inputs[0]]
        ends.append(op)
    branch, other = ends[shortcut.branch], ends[1 - shortcut.branch]
    same = branch.shape[2:] == other.shape[2:] and len(branch.shape) > 2
    return branch.path if branch.kind == other.kind == "layer" and same else None
