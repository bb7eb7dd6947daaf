"""From a trace and a policy to a plan; nothing is changed here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from binarize.graph.activations import decide_activations
from binarize.graph.classify import is_batch_norm
from binarize.graph.flow import Layer, find_layers, foreign_convolutions
from binarize.graph.growth import layers_to_stop
from binarize.graph.inputs import input_shapes
from binarize.graph.layers import obstacle
from binarize.graph.plan import CONTRACT, Decision, Plan
from binarize.graph.rewritable import Rewritable
from binarize.graph.scopes import ScopeGraph
from binarize.graph.settle import Settlement, settle_shortcuts
from binarize.graph.shortcuts import find_shortcuts
from binarize.graph.trace import Op, Trace
from binarize.graph.units import has_bypass
from binarize.policy.match import Site, select
from binarize.policy.schema import Policy, Rule

__all__ = ["make_plan"]


def make_plan(
    trace: Trace, policy: Policy, origin: Mapping[str, Any] | None = None, *, asked: int = 0
) -> tuple[Plan, dict[str, ScopeGraph]]:
    """Decide about every layer, norm, activation and residual addition of a traced network.

    Args:
        trace: The run.
        policy: The policy, overrides included.
        origin: How to build the float network by name, if known.
        asked: How many of the policy's first rules are the user's own overrides.

    Returns:
        The plan, and the graphs of the forwards that it rewrites, by path.
    """
    modules = dict(trace.model.named_modules(remove_duplicate=False))
    norms = _adoptable_norms(trace, modules)
    # An adopted norm leaves an nn.Identity behind, which is of another class.
    staying = {path: where for path, n in norms.items() if (where := trace.asked.about(n))}
    norms = {path: norm for path, norm in norms.items() if path not in staying}
    candidates = set(norms.values())
    # Roles ask which additions close a block, decisions ask for roles: the first look takes every
    # layer as binary.
    closing = find_shortcuts(
        trace, lambda op: True, lambda op: True, lambda op: op.path in candidates
    )
    layers = find_layers(
        trace,
        {shortcut.op.index for shortcut in closing},
        {op.index for shortcut in closing for op in shortcut.projection},
    )
    paths: dict[int, list[str]] = defaultdict(list)
    for path, module in modules.items():
        paths[id(module)].append(path)
    sites = [_site(layer, modules, paths[id(layer.module)]) for layer in layers.values()]
    chosen = [(rule, select(rule, sites)) for rule in policy.rules]
    decided = {
        path: _decide(trace, layer, next((rule for rule, places in chosen if i in places), None))
        for i, (path, layer) in enumerate(layers.items())
    }
    for path, where in staying.items():
        if decided[path].action == "binarize":
            reason = f"{decided[path].reason}; its norm stays, its class is asked for ({where})"
            decided[path] = replace(decided[path], reason=reason)
    binary = {path for path, one in decided.items() if one.action == "binarize"}
    carrying = {
        path
        for path in binary
        if has_bypass(layers[path].module, policy.unit.changed(decided[path].unit or {}))
    }
    adopted = {norms[path] for path in binary if path in norms}

    def is_binary(op: Op) -> bool:
        return op.path in binary

    def carries(op: Op) -> bool:
        return op.path in carrying

    def is_adopted(op: Op) -> bool:
        return op.path in adopted

    can_rewrite = Rewritable(trace, modules)
    shortcuts = find_shortcuts(trace, is_binary, carries, is_adopted)
    settled = settle_shortcuts(trace, shortcuts, layers, carries, can_rewrite)
    kept = {shortcut.op.index for shortcut in shortcuts} - set(settled.branches)
    merged = layers_to_stop(trace, carries, is_adopted, settled.branches, kept, settled.stopped)
    found = settled.decisions + decide_activations(
        trace,
        modules,
        layers,
        lambda op: op.path in binary and op.path not in settled.projections,
        policy,
        can_rewrite,
    )
    for path, layer in layers.items():
        position = layer.ops[0].index if layer.ops else len(trace.ops)
        found.append(
            (
                position,
                _layer_decision(
                    layer, decided[path], norms.get(path), settled, merged, path in carrying
                ),
            )
        )
    found += _foreign(trace)
    found.sort(key=lambda pair: pair[0])
    rewritten = sorted({d.scope for _, d in found if d.rewrite})
    plan = Plan(
        policy,
        tuple(decision for _, decision in found),
        dict(can_rewrite.opaque),
        origin,
        tuple(
            str(rule)
            for i, (rule, places) in enumerate(chosen)
            # That a network has no layer of some role is nothing to tell.
            if not places and (i < asked or not rule.match.role)
        ),
        {scope: given for scope in rewritten if (given := can_rewrite.arguments[scope])},
        _size(trace.model),
        input_shapes(trace),
    )
    return plan, {scope: can_rewrite.graphs[scope] for scope in rewritten}


@dataclass(frozen=True)
class _Verdict:
    """About a layer, before its place in a residual block counts; see :class:`Decision`."""

    action: str
    reason: str
    rule: str
    unit: Mapping[str, Any] | None = None


def _decide(trace: Trace, layer: Layer, rule: Rule | None) -> _Verdict:
    if rule is None:
        return _Verdict("keep", "no rule of the policy matches it", CONTRACT)
    hindrance = obstacle(layer.module)
    if hindrance is None and not layer.ops and "linear" in layer.kinds:
        hindrance = "it is never called itself; its weight may be used by another module"
    for name in ("weight", "bias"):
        if hindrance is None and id(getattr(layer.module, name)) in trace.direct:
            hindrance = f"its {name} is used outside of its own forward"
    if hindrance is None and layer.path in trace.asked.types:
        hindrance = f"its type is asked for ({trace.asked.types[layer.path]})"
    if rule.action == "binarize" and hindrance is not None:
        return _Verdict("keep", hindrance, CONTRACT)
    reason = rule.reason
    if not layer.ops:
        reason += "; the forward pass never calls it"
    return _Verdict(rule.action, reason, str(rule), rule.unit or None)


def _site(layer: Layer, modules: Mapping[str, Any], paths: Iterable[str]) -> Site:
    """A layer for rules; it may be registered under several names, which are all its own."""
    every = dict.fromkeys((layer.path, *paths))
    names = [name for path in every for name in _names(path, modules)]
    return Site(tuple(names), layer.roles, layer.kinds, type(layer.module).__name__)


def _names(path: str, modules: Mapping[str, Any]) -> list[str]:
    """A path, also with places in lists counted from their end."""
    names = [""]
    parent = ""
    for part in path.split("."):
        siblings = list(modules[parent]._modules)
        words = [part]
        if all(name.isdecimal() for name in siblings):
            words.append(str(siblings.index(part) - len(siblings)))
        names = [f"{name}.{word}" if name else word for name in names for word in words]
        parent = f"{parent}.{part}" if parent else part
    return names


def _layer_decision(
    layer: Layer,
    decided: _Verdict,
    norm: str | None,
    settled: Settlement,
    merged: set[str],
    can_carry: bool,
) -> Decision:
    path = layer.path
    action, reason, rule = decided.action, decided.reason, decided.rule
    if path in settled.projections:
        action, reason = settled.projections[path]
        rule = CONTRACT
    if action == "binarize" and path in merged:
        reason += "; no bypass, the signal would grow at every merge"
    elif action == "binarize" and path in settled.stopped:
        reason += "; no bypass, the block's own shortcut carries the signal"
    elif action == "binarize" and not can_carry:
        reason += "; no bypass, by the policy"
    kept = action != "binarize"
    return Decision(
        site=path,
        part="layer",
        kind=type(layer.module).__name__,
        action=action,
        reason=reason,
        rule=rule,
        shape=tuple(layer.module.weight.shape),
        norm=norm if action != "keep" else None,
        carries=path not in settled.stopped and path not in merged and (can_carry or kept),
        like=settled.alike.get(path),
        roles=tuple(sorted(layer.roles)),
        unit=decided.unit if action in ("binarize", "bypass") else None,
    )


def _foreign(trace: Trace) -> list[tuple[int, Decision]]:
    """Convolutions that stay because a unit cannot know what their forward does."""
    return [
        (
            trace.inside[path][0].index if trace.inside[path] else len(trace.ops),
            Decision(
                site=path,
                part="layer",
                kind=type(module).__name__,
                action="keep",
                reason="a convolution that is none of torch's: what it does with its weight "
                "(mixes kernels for every image, say) is its own",
                rule=CONTRACT,
                shape=tuple(module.weight.shape),
            ),
        )
        for path, module in foreign_convolutions(trace).items()
    ]


def _adoptable_norms(trace: Trace, modules: Mapping[str, Any]) -> dict[str, str]:
    """Per layer the BatchNorm that takes its output, and nothing else does, at every call."""
    pairs: dict[str, set[str | None]] = defaultdict(set)
    sources: dict[str, set[str | None]] = defaultdict(set)
    for op in trace.ops:
        if op.kind == "layer" and op.path is not None:
            followers = [trace.ops[i] for i in trace.consumers[op.index]]
            norm = followers[0] if len(followers) == 1 else None
            adopted = norm is not None and norm.kind == "norm" and norm.path is not None
            pairs[op.path].add(norm.path if norm is not None and adopted else None)
        elif op.kind == "norm" and op.path is not None:
            before = trace.ops[op.inputs[0]] if op.inputs else None
            is_layer = before is not None and before.kind == "layer"
            sources[op.path].add(before.path if before is not None and is_layer else None)
    result: dict[str, str] = {}
    for path, norms in pairs.items():
        (norm_path, *more) = norms
        if more or norm_path is None or sources[norm_path] != {path}:
            continue
        norm_module, layer = modules[norm_path], modules[path]
        width = getattr(layer, "out_channels", getattr(layer, "out_features", None))
        if is_batch_norm(norm_module) and norm_module.num_features == width:
            result[path] = norm_path
    return result


def _size(model: nn.Module) -> dict[str, int]:
    """Parameters of a network and bytes of its state_dict, each tensor once."""
    tensors = {id(x): x for x in model.state_dict(keep_vars=True).values() if isinstance(x, Tensor)}
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(x.numel() * x.element_size() for x in tensors.values()),
    }
