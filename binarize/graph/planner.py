"""From a trace and a policy to a plan; nothing is changed here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from binarize.graph.activations import decide_activations
from binarize.graph.classify import is_batch_norm
from binarize.graph.flow import Layer, find_layers, foreign_convolutions
from binarize.graph.growth import layers_to_stop
from binarize.graph.inputs import input_shapes
from binarize.graph.layers import is_standardized, obstacle
from binarize.graph.outputs import ending_outputs
from binarize.graph.plan import CONTRACT, Decision, Plan
from binarize.graph.rewritable import Rewritable
from binarize.graph.scopes import ScopeGraph
from binarize.graph.settle import Settlement, settle_shortcuts
from binarize.graph.shortcuts import find_shortcuts
from binarize.graph.sizes import depends_on_size, spelled_size
from binarize.graph.trace import Op, Trace
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
    asked: int = 0,
    training: Trace | None = None,
) -> tuple[Plan, dict[str, ScopeGraph]]:
    """Decide about every layer, norm, activation and residual addition of a traced network.

    Args:
        trace: The run.
        policy: The policy, overrides included.
        origin: How to build the float network by name, if known.
        asked: How many of the policy's first rules are the user's own overrides.
        training: A run in training mode, if the network goes another way then.

    Returns:
        The plan, and the graphs of the forwards that it rewrites, by path.
    """
    modules = dict(trace.model.named_modules(remove_duplicate=False))
    runs = [trace] if training is None else [trace, training]
    norms, watched = _answering(runs, _common_norms(runs, modules))
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
        by_user = place is not None and place < asked
        decided[path] = _decide(layer, rule, direct, _size_of(runs, layer), by_user=by_user)
        if decided[path].action != "keep" and path in watched:
            decided[path] = _heed(decided[path], watched[path], runs, path)
    judged = _Judged(policy, modules, layers, decided, norms, _endings(runs, layers))
    parts = [_decide_run(trace, judged)]
    if training is not None and any("training" in layer.roles for layer in layers.values()):
        parts.append(_decide_run(training, judged, beside=trace))
    found = [pair for part in parts for pair in part.found]
    for layer in layers.values():
        part = parts[-1] if "training" in layer.roles else parts[0]
        position = part.start + layer.ops[0].index if layer.ops else parts[-1].end
        found.append((position, _layer_decision(layer, judged, part)))
    found += _foreign(trace)
    found.sort(key=lambda pair: pair[0])
    rewritten = sorted({d.scope for _, d in found if d.rewrite})
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
            # That a network has no layer of some role is nothing to tell.
            if not places and (i < asked or not rule.match.role)
        ),
        {scope: given[scope] for scope in rewritten if given[scope]},
        _size(trace.model),
        input_shapes(trace),
    )
    return plan, {scope: graphs[scope] for scope in rewritten}


class _Judged:
    """What rules say of the layers, and what follows for a run's operations."""

    def __init__(
        self,
        policy: Policy,
        modules: Mapping[str, Any],
        layers: Mapping[str, Layer],
        decided: Mapping[str, _Verdict],
        norms: Mapping[str, str],
        endings: Container[tuple[str, str, int]],
    ) -> None:
        self.policy, self.modules, self.layers = policy, modules, layers
        self.decided, self.norms, self.endings = decided, norms, endings
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

    found: list[tuple[int, Decision]]
    settled: Settlement
    merged: set[str]
    can_rewrite: Rewritable
    start: int
    end: int


def _decide_run(run: Trace, judged: _Judged, beside: Trace | None = None) -> _Part:
    """Decide about additions, factors and activations; ``beside`` is a run decided already."""
    can_rewrite = Rewritable(run, dict(judged.modules))
    shortcuts = find_shortcuts(run, judged.is_binary, judged.carries, judged.is_adopted)
    settled = settle_shortcuts(run, shortcuts, judged.layers, judged.carries, can_rewrite)
    staying = {shortcut.op.index for shortcut in shortcuts} - set(settled.branches)
    merged = layers_to_stop(
        run,
        judged.carries,
        judged.is_adopted,
        settled.branches,
        staying,
        settled.stopped,
        settled.scales,
    )
    found = settled.decisions + decide_activations(
        run,
        judged.modules,
        judged.layers,
        lambda op: judged.is_binary(op) and op.path not in settled.projections,
        judged.policy,
        can_rewrite,
        judged.endings,
    )
    start = 0 if beside is None else len(beside.ops)
    if beside is not None:
        found = [(at, decision) for at, decision in found if _is_new(decision, beside)]
    found = [(start + at, decision) for at, decision in found]
    return _Part(found, settled, merged, can_rewrite, start, start + len(run.ops))


def _is_new(decision: Decision, known: Trace) -> bool:
    """Whether a decision is about what another run does not call."""
    if decision.scope not in known.calls:
        return True
    names = {decision.site, decision.site.removesuffix(".act")}
    return not (decision.rewrite or ":" in decision.site or names & known.calls.keys())


def _common_layers(runs: list[Trace], norms: set[str]) -> dict[str, Layer]:
    """The layers of a run in evaluation mode, and what one in training mode adds to them."""
    looks = []
    for run in runs:
        # Roles ask which additions close a block, decisions ask for roles: the first look takes
        # every layer as binary.
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
    """Per layer the norm to adopt, which no run may take from it."""
    found = _adoptable_norms(runs[0], modules)
    for run in runs[1:]:
        others = _adoptable_norms(run, modules)
        agreed = {p: n for p, n in found.items() if p not in run.calls or others.get(p) == n}
        known = runs[0].calls
        found = agreed | {p: n for p, n in others.items() if p not in known and n not in known}
    return found


def _answering(
    runs: list[Trace], norms: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The norms to adopt, and by layer where a forward asks for its type or its norm's class.

    An adopted norm leaves an ``nn.Identity`` behind, so that one that is asked for stays.
    """
    watched = {path: where for run in runs for path, where in run.asked.types.items()}
    staying = {
        path: where for run in runs for path, n in norms.items() if (where := run.asked.about(n))
    }
    return {p: n for p, n in norms.items() if p not in staying}, {**staying, **watched}


def _heed(verdict: _Verdict, where: str, runs: list[Trace], path: str) -> _Verdict:
    """The verdict on a layer whose type, or whose norm's class, a forward asks for."""
    if any(path in run.asked.types for run in runs):
        return _Verdict("keep", f"its type is asked for ({where})", CONTRACT)
    return replace(verdict, reason=f"{verdict.reason}; its norm stays, as {where} asks for it")


def _endings(runs: list[Trace], layers: Mapping[str, Layer]) -> set[tuple[str, str, int]]:
    """Scope, path and ordinal of what stands between a layer that makes an output and it."""
    heads = {path for path, layer in layers.items() if "prediction" in layer.roles}
    return {
        (op.scope, op.path or "", op.ordinal)
        for run in runs
        for op in ending_outputs(run, [op for op in run.ops if op.path in heads])
        if op.kind == "activation" or op.path is not None
    }


@dataclass(frozen=True)
class _Verdict:
    """About a layer, before its place in a residual block counts; see :class:`Decision`."""

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
        hindrance = "it is never called itself; its weight may be used by another module"
    for name in ("weight", "bias"):
        if hindrance is None and id(getattr(layer.module, name)) in direct:
            hindrance = f"its {name} is used outside of its own forward"
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
    """Why 8 bits cannot stand in for a layer that one bit could, or ``None``."""
    if is_standardized(layer.module):
        return "it standardizes its weight in its own forward"
    # Without a range nothing could be packed, and recalibration would not give it one.
    if not layer.ops:
        return "the forward pass never calls it, so that no range of its input is observed"
    if "training" in layer.roles:
        return "only training calls it, so that no range of its input may be observed"
    return None


def _size_of(runs: list[Trace], layer: Layer) -> str:
    """The input's size, if a layer works on one position for its sake; else nothing."""
    run = runs[-1] if "training" in layer.roles else runs[0]
    size = next((op.shape[2:] for op in run.ops if op.kind == "input"), ())
    vector = "vector" in layer.roles and any(depends_on_size(run, op) for op in layer.ops)
    return spelled_size(size) if size and vector else ""


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
        if siblings and all(name.isdecimal() for name in siblings):
            words.append(str(siblings.index(part) - len(siblings)))
        names = [f"{name}.{word}" if name else word for name in names for word in words]
        parent = f"{parent}.{part}" if parent else part
    return names


def _layer_decision(layer: Layer, judged: _Judged, part: _Part) -> Decision:
    path = layer.path
    decided, settled, merged = judged.decided[path], part.settled, part.merged
    norm, can_carry = judged.norms.get(path), path in judged.carrying
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
        norm=norm if _takes_norm(action) else None,
        carries=path not in settled.stopped and path not in merged and (can_carry or kept),
        like=settled.alike.get(path),
        roles=tuple(sorted(layer.roles)),
        unit=decided.unit if action in ("binarize", "bypass") else None,
    )


def _takes_norm(action: str) -> bool:
    """Whether the norm behind a layer goes into it, or with it."""
    return action not in TREATMENTS or TREATMENTS[action].adopts_norm


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
