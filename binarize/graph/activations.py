"""Choose the ReLU-like activations that a binary layer's own activation replaces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Mapping
from typing import Any

from torch import nn

from binarize.graph.decisions import CONTRACT, ActivationDecision
from binarize.graph.flow import Layer, fed_by, leads_to, only_prediction_follows
from binarize.graph.layers import scope_name
from binarize.graph.recorder import Op
from binarize.graph.rewritable import Rewritable
from binarize.graph.trace import Trace
from binarize.policy.schema import Policy

__all__ = ["decide_activations"]


def decide_activations(
    trace: Trace,
    modules: Mapping[str, Any],
    layers: Mapping[str, Layer],
    is_unit: Callable[[Op], bool],
    policy: Policy,
    can_rewrite: Rewritable,
    ending: Container[tuple[str, str, int]] = (),
) -> list[tuple[int, ActivationDecision]]:
    """Decide what happens to every activation of a run.

    Args:
        trace: The run.
        modules: All modules, by path.
        layers: The layers, by path.
        is_unit: Whether a layer's call becomes a binary layer.
        policy: The policy.
        can_rewrite: Tests whether a functional activation in a forward can be replaced.
        ending: Scope, path and ordinal of the operations between a prediction and an output.

    Returns:
        Decisions, each with its position in the run.
    """
    fed = fed_by(trace, is_unit)
    around = policy.replace_activations == "around"
    reach = fed_by(trace, lambda op: True) if around else fed
    ahead = leads_to(trace, is_unit) if around else [False] * len(trace.ops)
    heads = {path for path, layer in layers.items() if "prediction" in layer.roles}
    head = only_prediction_follows(trace, lambda op: op.path in heads)
    places: dict[tuple[str, str, int], list[Op]] = defaultdict(list)
    for op in trace.ops:
        if op.kind == "activation" or _norm_activation(op, modules) is not None:
            places[op.scope, op.path or "", op.ordinal].append(op)
    uses: dict[str, int] = defaultdict(int)
    for _, path, _ in places:
        uses[path] += 1
    by_policy = f"policy {policy.name}"
    decisions = []
    for (scope, path, ordinal), ops in places.items():
        first = ops[0]
        inside = _norm_activation(first, modules)
        site = path or f"{scope_name(scope)}:{first.name}#{ordinal}"
        rewrite = not path or uses[path] > 1
        dims = {reach[op.index] if ahead[op.index] else fed[op.index] for op in ops}
        widths = {op.shape[d] for op in ops for d in dims if d and len(op.shape) > abs(d)}
        action, rule = "keep", CONTRACT
        if policy.unit.activation is None or policy.replace_activations == "none":
            reason, rule = "the policy keeps activations", by_policy
        elif (scope, path, ordinal) in ending:
            reason = "it ends an output and sets its range"
        elif not any(dims):
            reason = "no binary layer feeds it"
        elif head[first.index] and policy.replace_activations == "all-but-head":
            reason, rule = "it precedes the prediction", by_policy
        elif len(dims) > 1 or len(widths) != 1:
            reason = "its calls differ in their number of channels"
        elif path in trace.type_checks.types:
            reason = f"the forward checks its type ({trace.type_checks.types[path]})"
        elif rewrite and not can_rewrite(scope):
            reason = f"the forward that calls it cannot be rewritten: {can_rewrite.opaque[scope]}"
        else:
            place = "follows" if all(fed[op.index] for op in ops) else "precedes"
            action, reason = "replace", f"{place} a binary layer; becomes {policy.unit.activation}"
        replaced = action == "replace"
        decision = ActivationDecision(
            site=site if inside is None else f"{path}.act",
            kind=first.name if inside is None else type(inside).__name__,
            action=action,
            reason=reason,
            rule=rule,
            scope=scope,
            ordinal=ordinal,
            rewrite=rewrite and replaced,
            channels=widths.pop() if replaced else 0,
            channel_dim=dims.pop() if replaced else 1,
        )
        decisions.append((first.index, decision))
    return decisions


def _norm_activation(op: Op, modules: Mapping[str, Any]) -> nn.Module | None:
    """Return the activation that a norm module applies itself (such as timm's BatchNormAct2d)."""
    if op.kind != "norm" or op.path is None:
        return None
    act = getattr(modules[op.path], "act", None)
    return act if isinstance(act, nn.Module) and not isinstance(act, nn.Identity) else None
