"""Which parts of a plan depend on the input size that it was made at."""

from __future__ import annotations

from collections.abc import Iterable

from binarize.graph.plan import Plan
from binarize.graph.recorder import Op
from binarize.graph.trace import Trace

__all__ = ["depends_on_size", "size_notes", "spelled_size"]


def spelled_size(shape: Iterable[int]) -> str:
    """Format a shape or size, as in ``1×3×256×256``."""
    return "×".join(map(str, shape)) or "scalar"


def depends_on_size(trace: Trace, op: Op) -> bool:
    """Check whether a layer works on one position because strides left no more of the input.

    Args:
        trace: The run.
        op: A layer's call on a feature map with one position.
    """
    while op.inputs:
        before = trace.ops[op.inputs[0]]
        whole = before.kind in ("layer", "pool") and not before.name.startswith(
            ("Ada", "ada", "mean")
        )
        if any(length > 1 for length in before.in_shape[2:]):
            return whole and len(before.shape) == len(before.in_shape)
        op = before
    return False


def size_notes(plan: Plan, trace: Trace) -> list[str]:
    """Describe how a plan would differ at the size at which its network is used.

    Args:
        plan: The plan of a converted network.
        trace: A run of that network.

    Returns:
        Lines of text, empty if the size changes nothing.
    """
    shapes = tuple(op.shape for op in trace.ops if op.kind == "input")
    if not plan.example or shapes == plan.example:
        return []
    keeping = [r for r in plan.policy.rules if r.action == "keep"]
    spared = [r for r in keeping if "vector" in r.match.role]
    tokens_stay = any("tokens" in r.match.role for r in keeping)
    wide: dict[str, bool] = {}
    for op in trace.ops:
        if op.kind == "layer" and op.path is not None and len(op.in_shape) > 2:
            linear = "Linear" in op.name
            if linear and len(op.in_shape) < 4 and tokens_stay:
                # With one token or many, it stays float.
                continue
            places = op.in_shape[1:-1] if linear else op.in_shape[2:]
            wide[op.path] = wide.get(op.path, False) or any(length > 1 for length in places)
    rules = {str(rule) for rule in spared}
    # A layer that an earlier rule (such as an override) decides is decided so at any size.
    order = [str(rule) for rule in plan.policy.rules]
    later = set(order[min(map(order.index, rules), default=len(order)) :])
    many, single = [], []
    for layer in plan.layers:
        vector = "vector" in layer.roles
        if layer.action == "keep" and vector and layer.rule in rules and wide.get(layer.site):
            many.append(layer.site)
        elif (
            layer.action == "binarize"
            and not vector
            and layer.rule in later
            and not wide.get(layer.site, True)
        ):
            single.append(layer.site)
    planned, used = (" and ".join(map(spelled_size, each)) for each in (plan.example, shapes))
    return [
        f"planned at {planned}; at {used} {_few(sites)} {what}: convert with inputs of this size"
        for sites, what in (
            (many, "would be binary, on more than one position"),
            (single, "would stay float, on one position"),
        )
        if sites
    ]


def _few(sites: list[str]) -> str:
    more = f" and {len(sites) - 4} more" if len(sites) > 4 else ""
    return ", ".join(sites[:4]) + more
