"""Make a plan from a trace and a policy; the network stays unchanged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from binarize.graph.activations import decide_activations
from binarize.graph.classify import is_batch_norm
from binarize.graph.decisions import CONTRACT, Decision, LayerDecision, OperationDecision
from binarize.graph.flow import Layer, find_layers, foreign_convolutions
from binarize.graph.inputs import input_shapes
from binarize.graph.layers import is_standardized, obstacle
from binarize.graph.outputs import ending_outputs
from binarize.graph.plan import Plan
from binarize.graph.recorder import Op
from binarize.graph.resolve_shortcuts import ShortcutResolution, resolve_shortcuts
from binarize.graph.rewritable import Rewritable
from binarize.graph.scopes import ScopeGraph, ScopeGraphs
from binarize.graph.shortcuts import find_shortcuts
from binarize.graph.signal_variance import layers_without_bypass
from binarize.graph.sizes import depends_on_size, spelled_size
from binarize.graph.trace import Trace
from binarize.graph.units import has_bypass
from binarize.nn.treatments import TREATMENTS
from binarize.policy.match import Site, select
from binarize.policy.schema import Policy, Rule

__all__ = ["make_plan"]


def make_plan(
    trace: Trace,
    policy: Policy,
    origin: Mapping[str, Any] | None = None,
    *,
    overrides: int = 0,
    training: Trace | None = None,
    scopes: ScopeGraphs | None = None,
) -> tuple[Plan, dict[str, ScopeGraph]]:
    """Decide about every layer, norm, activation and residual addition of a traced network.

    Args:
        trace: The run.
        policy: The policy, including overrides.
        origin: How to build the float network by name, if known.
        overrides: How many of the policy's first rules are the user's own overrides.
        training: A run in training mode, if the network then takes a different path.
        scopes: Graphs of its forwards from earlier plans.

    Returns:
        The plan, and the graphs of the forwards that it rewrites, by path.
    """
    modules = dict(trace.model.named_modules(remove_duplicate=False))
    scopes = ScopeGraphs(modules) if scopes is None else scopes
    runs = [trace] if training is None else [trace, training]
    norms, watched = _without_checked(runs, _common_norms(runs, modules))
    layers = _common_layers(runs, set(norms.values()))
    paths: dict[int, list[str]] = defaultdict(list)
    for path, module in modules.items():
        paths[id(module)].append(path)
    sites = [_site(layer, modules, paths[id(layer.module)]) for layer in layers.values()]
    chosen = [(rule, select(rule, sites)) for rule in policy.rules]
    direct = frozenset().union(*(run.direct for run in runs))
    decided = {}
    for i, (path, layer) in enumerate(layers.items()):
        place = next((k for k, (_, places) in enumerate(chosen) if i in places), None)
        rule = None if place is None else chosen[place][0]
        by_user = place is not None and place < overrides
        decided[path] = _decide(layer, rule, direct, _size_of(runs, layer), by_user=by_user)
        if decided[path].action != "keep" and path in watched:
            decided[path] = _apply_type_check(decided[path], watched[path], runs, path)
    judged = _Judged(policy, modules, layers, decided, norms, _endings(runs, layers), scopes)
    parts = [_decide_run(trace, judged)]
    if training is not None and any("training" in layer.roles for layer in layers.values()):
        parts.append(_decide_run(training, judged, beside=trace))
    found: list[tuple[int, Decision]] = [pair for part in parts for pair in part.found]
    rewritten = sorted({edit.scope for part in parts for _, edit in part.found if edit.rewrite})
    for layer in layers.values():
        part = parts[-1] if "training" in layer.roles else parts[0]
        position = part.start + layer.ops[0].index if layer.ops else parts[-1].end
        found.append((position, _layer_decision(layer, judged, part)))
    found += _foreign(trace)
    found.sort(key=lambda pair: pair[0])
    graphs, given, opaque = {}, {}, {}
    for part in reversed(parts):
        graphs.update(part.can_rewrite.graphs)
        given.update(part.can_rewrite.arguments)
        opaque.update(part.can_rewrite.opaque)
    plan = Plan(
        policy,
        tuple(decision for _, decision in found),
        opaque,
        origin,
        tuple(
            str(rule)
            for i, (rule, places) in enumerate(chosen)
            # A network without layers of some role needs no note.
            if not places and (i < overrides or not rule.match.role)
        ),
        {scope: given[scope] for scope in rewritten if given[scope]},
        _size(trace.model),
        input_shapes(trace),
    )
    return plan, {scope: graphs[scope].copied() for scope in rewritten}


class _Judged:
    """What the rules decide about the layers, and what follows for a run's operations."""

    def __init__(
        self,
        policy: Policy,
        modules: Mapping[str, Any],
        layers: Mapping[str, Layer],
        decided: Mapping[str, _Verdict],
        norms: Mapping[str, str],
        endings: Container[tuple[str, str, int]],
        scopes: ScopeGraphs,
    ) -> None:
        self.policy, self.modules, self.layers = policy, modules, layers
        self.decided, self.norms, self.endings = decided, norms, endings
        self.scopes = scopes
        self.binary = {path for path, one in decided.items() if one.action == "binarize"}
        self.carrying = {
            path
            for path in self.binary
            if has_bypass(layers[path].module, policy.unit.changed(decided[path].unit or {}))
        }
        self._adopted = {norms[path] for path in self.binary if path in norms}

    def is_binary(self, op: Op) -> bool:
        return op.path in self.binary

    def carries(self, op: Op) -> bool:
        return op.path in self.carrying

    def is_adopted(self, op: Op) -> bool:
        return op.path in self._adopted


@dataclass(frozen=True)
class _Part:
    """Decisions about the operations of one run, which are numbered from ``start`` to ``end``."""

    found: list[tuple[int, OperationDecision]]
    resolution: ShortcutResolution
    bypass_limited: set[str]
    can_rewrite: Rewritable
    start: int
    end: int


def _decide_run(run: Trace, judged: _Judged, beside: Trace | None = None) -> _Part:
    """Decide about additions, factors and activations; ``beside`` is a run already decided."""
    can_rewrite = Rewritable(run, judged.modules, judged.scopes)
    shortcuts = find_shortcuts(run, judged.is_binary, judged.carries, judged.is_adopted)
    resolution = resolve_shortcuts(run, shortcuts, judged.layers, judged.carries, can_rewrite)
    staying = {shortcut.op.index for shortcut in shortcuts} - set(resolution.branches)
    bypass_limited = layers_without_bypass(
        run,
        judged.carries,
        judged.is_adopted,
        resolution.branches,
        staying,
        resolution.bypass_removed,
        resolution.scales,
    )
    found = resolution.decisions + decide_activations(
        run,
        judged.modules,
        judged.layers,
        lambda op: judged.is_binary(op) and op.path not in resolution.projections,
        judged.policy,
        can_rewrite,
        judged.endings,
    )
    start = 0 if beside is None else len(beside.ops)
    if beside is not None:
        found = [(at, decision) for at, decision in found if _is_new(decision, beside)]
    found = [(start + at, decision) for at, decision in found]
    return _Part(found, resolution, bypass_limited, can_rewrite, start, start + len(run.ops))


def _is_new(decision: OperationDecision, known: Trace) -> bool:
    """Check whether a decision is about an operation that another run does not call."""
    if decision.scope not in known.calls:
        return True
    names = {decision.site, decision.site.removesuffix(".act")}
    return not (decision.rewrite or ":" in decision.site or names & known.calls.keys())


def _common_layers(runs: list[Trace], norms: set[str]) -> dict[str, Layer]:
    """Return the layers of a run in evaluation mode, extended by those of one in training mode."""
    looks = []
    for run in runs:
        # Roles depend on which additions close a block, and decisions depend on roles: the first
        # pass assumes that every layer is binary.
        closing = find_shortcuts(run, lambda op: True, lambda op: True, lambda op: op.path in norms)
        looks.append(find_layers(run, {shortcut.op.index: shortcut for shortcut in closing}))
    found = looks[0]
    for path, other in (looks[-1] if len(looks) > 1 else {}).items():
        layer = found.get(path)
        if layer is None or not other.ops:
            continue
        if not layer.ops:
            found[path] = replace(other, roles=other.roles | {"training"})
        elif added := other.roles & {"prediction", "coordinates"} - layer.roles:
            found[path] = replace(layer, roles=layer.roles | added, guess=other.guess)
    order = {path: 2 - bool(x.ops) - ("training" not in x.roles) for path, x in found.items()}
    return dict(sorted(found.items(), key=lambda pair: order[pair[0]]))


def _common_norms(runs: list[Trace], modules: Mapping[str, Any]) -> dict[str, str]:
    """Return, per layer, the norm to adopt, on which all runs agree."""
    found = _adoptable_norms(runs[0], modules)
    for run in runs[1:]:
        others = _adoptable_norms(run, modules)
        agreed = {p: n for p, n in found.items() if p not in run.calls or others.get(p) == n}
        known = runs[0].calls
        found = agreed | {p: n for p, n in others.items() if p not in known and n not in known}
    return found


def _without_checked(
    runs: list[Trace], norms: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the norms to adopt, and by layer where a forward checks its type or its norm's class.

    An adopted norm leaves an ``nn.Identity``, so a norm whose class is checked stays.
    """
    watched = {path: where for run in runs for path, where in run.type_checks.types.items()}
    staying = {
        path: where
        for run in runs
        for path, n in norms.items()
        if (where := run.type_checks.about(n))
    }
    return {p: n for p, n in norms.items() if p not in staying}, {**staying, **watched}


def _apply_type_check(verdict: _Verdict, where: str, runs: list[Trace], path: str) -> _Verdict:
    """Return the verdict on a layer if a forward checks its type or its norm's class."""
    if any(path in run.type_checks.types for run in runs):
        return _Verdict("keep", f"the forward checks its type ({where})", CONTRACT)
    return replace(verdict, reason=f"{verdict.reason}; its norm stays, as {where} checks its class")


def _endings(runs: list[Trace], layers: Mapping[str, Layer]) -> set[tuple[str, str, int]]:
    """Return scope, path and ordinal of the operations between an output layer and its output."""
    heads = {path for path, layer in layers.items() if "prediction" in layer.roles}
    return {
        (op.scope, op.path or "", op.ordinal)
        for run in runs
        for op in ending_outputs(run, [op for op in run.ops if op.path in heads])
        if op.kind == "activation" or op.path is not None
    }


@dataclass(frozen=True)
class _Verdict:
    """The decision about a layer before its position in a residual block is considered."""

    action: str
    reason: str
    rule: str
    unit: Mapping[str, Any] | None = None


def _decide(
    layer: Layer, rule: Rule | None, direct: Container[int], size: str, *, by_user: bool
) -> _Verdict:
    if rule is None:
        return _Verdict("keep", "no rule of the policy matches it", CONTRACT)
    hindrance = obstacle(layer.module)
    if hindrance is None and not layer.ops and "linear" in layer.kinds:
        hindrance = "it is never called itself; another module may use its weight"
    for name in ("weight", "bias"):
        if hindrance is None and id(getattr(layer.module, name)) in direct:
            hindrance = f"its {name} is used outside its own forward"
    if rule.action == "int8" and hindrance is None:
        hindrance = _obstacle_to_int8(layer)
    if rule.action != "keep" and hindrance is not None:
        return _Verdict("keep", hindrance, CONTRACT)
    reason = rule.reason
    guessed = rule.action == "binarize" or "prediction" in rule.match.role
    if layer.guess and guessed and not by_user:
        reason += f"; {layer.guess}"
    if rule.action == "keep" and "vector" in rule.match.role and size:
        reason += f"; one position at {size}, more at larger sizes"
    if "training" in layer.roles:
        reason += "; only training calls it"
    if not layer.ops:
        reason += "; the forward pass never calls it"
    return _Verdict(rule.action, reason, str(rule), rule.unit or None)


def _obstacle_to_int8(layer: Layer) -> str | None:
    """Return why 8 bits cannot replace a layer that one bit could, or ``None``."""
    if is_standardized(layer.module):
        return "it standardizes its weight in its own forward"
    # Without a range it could not be packed, and recalibration would not find one.
    if not layer.ops:
        return "the forward pass never calls it, so no input range is observed"
    if "training" in layer.roles:
        return "only training calls it, so its input range may not be observed"
    return None


def _size_of(runs: list[Trace], layer: Layer) -> str:
    """Return the input's size if it makes a layer work on a single position, else nothing."""
    run = runs[-1] if "training" in layer.roles else runs[0]
    size = next((op.shape[2:] for op in run.ops if op.kind == "input"), ())
    vector = "vector" in layer.roles and any(depends_on_size(run, op) for op in layer.ops)
    return spelled_size(size) if size and vector else ""


def _site(layer: Layer, modules: Mapping[str, Any], paths: Iterable[str]) -> Site:
    """Describe a layer for rule matching, under every name that it is registered under."""
    every = dict.fromkeys((layer.path, *paths))
    names = [name for path in every for name in _names(path, modules)]
    return Site(tuple(names), layer.roles, layer.kinds, type(layer.module).__name__)


def _names(path: str, modules: Mapping[str, Any]) -> list[str]:
    """Return a path, also with list positions counted from the end."""
    names = [""]
    parent = ""
    for part in path.split("."):
        siblings = list(modules[parent]._modules)
        words = [part]
        if siblings and all(name.isdecimal() for name in siblings):
            words.append(str(siblings.index(part) - len(siblings)))
        names = [f"{name}.{word}" if name else word for name in names for word in words]
        parent = f"{parent}.{part}" if parent else part
    return names


def _layer_decision(layer: Layer, judged: _Judged, part: _Part) -> LayerDecision:
    path = layer.path
    decided, resolution, bypass_limited = judged.decided[path], part.resolution, part.bypass_limited
    norm, can_carry = judged.norms.get(path), path in judged.carrying
    action, reason, rule = decided.action, decided.reason, decided.rule
    if path in resolution.projections:
        action, reason = resolution.projections[path]
        rule = CONTRACT
    if action == "binarize" and path in bypass_limited:
        reason += "; no bypass, the signal would grow at every merge"
    elif action == "binarize" and path in resolution.bypass_removed:
        reason += "; no bypass, the block's own shortcut carries the signal"
    elif action == "binarize" and not can_carry:
        reason += "; no bypass, by the policy"
    kept = action != "binarize"
    return LayerDecision(
        site=path,
        kind=type(layer.module).__name__,
        action=action,
        reason=reason,
        rule=rule,
        shape=tuple(layer.module.weight.shape),
        norm=norm if _takes_norm(action) else None,
        carries=path not in resolution.bypass_removed
        and path not in bypass_limited
        and (can_carry or kept),
        like=resolution.alike.get(path),
        roles=tuple(sorted(layer.roles)),
        unit=decided.unit if action in ("binarize", "bypass") else None,
    )


def _takes_norm(action: str) -> bool:
    """Check whether the norm after a layer moves into it, or is removed with it."""
    return action not in TREATMENTS or TREATMENTS[action].adopts_norm


def _foreign(trace: Trace) -> list[tuple[int, LayerDecision]]:
    """Keep convolutions whose forward the converter does not know."""
    return [
        (
            trace.inside[path][0].index if trace.inside[path] else len(trace.ops),
            LayerDecision(
                site=path,
                kind=type(module).__name__,
                action="keep",
                reason="a custom convolution class, whose forward may use its weight in its own "
                "way (mix kernels per image, for example)",
                rule=CONTRACT,
                shape=tuple(module.weight.shape),
            ),
        )
        for path, module in foreign_convolutions(trace).items()
    ]


def _adoptable_norms(trace: Trace, modules: Mapping[str, Any]) -> dict[str, str]:
    """Return, per layer, the BatchNorm that alone reads its output at every call."""
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
    """Return the parameters of a network and the bytes of its state_dict, each tensor once."""
    tensors = {id(x): x for x in model.state_dict(keep_vars=True).values() if isinstance(x, Tensor)}
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(x.numel() * x.element_size() for x in tensors.values()),
    }
