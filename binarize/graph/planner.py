"""From a trace and a policy to a plan; nothing is changed here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from binarize.errors import ModelError
from binarize.graph.classify import is_batch_norm
from binarize.graph.flow import Layer, fed_by, find_layers, only_prediction_follows
from binarize.graph.growth import layers_to_stop
from binarize.graph.layers import obstacle, scope_name
from binarize.graph.plan import Decision, Plan
from binarize.graph.scopes import constants, fits, trace_scope
from binarize.graph.shortcuts import GATED, WHOLE, Shortcut, find_shortcuts
from binarize.graph.trace import Op, Trace
from binarize.policy.match import matches
from binarize.policy.schema import Policy, Rule

__all__ = ["make_plan"]

CONTRACT = "contract"


def make_plan(trace: Trace, policy: Policy, origin: Mapping[str, Any] | None = None) -> Plan:
    """Decide about every layer, norm, activation and residual addition of a traced network.

    Args:
        trace: The run.
        policy: The policy, overrides included.
        origin: How to build the float network by name, if known.

    Returns:
        The plan.
    """
    return _Planner(trace, policy).plan(origin)


class _Planner:
    def __init__(self, trace: Trace, policy: Policy) -> None:
        self.trace = trace
        self.policy = policy
        self.modules = dict(trace.model.named_modules(remove_duplicate=False))
        self.opaque: dict[str, str] = {}
        self._rewritable: dict[str, bool] = {}
        self._arguments: dict[str, dict[str, Any]] = {}
        self._alike: dict[str, str | None] = {}
        self.norms = self._adoptable()
        norm_paths = set(self.norms.values())

        def is_adoptable(op: Op) -> bool:
            return op.path in norm_paths

        closing = {s.op.index for s in find_shortcuts(trace, lambda op: True, is_adoptable)}
        self.layers = find_layers(trace, closing)
        self.decided = {path: self._decide(layer) for path, layer in self.layers.items()}
        self.binary = {p for p, (action, _, _) in self.decided.items() if action == "binarize"}

    def plan(self, origin: Mapping[str, Any] | None) -> Plan:
        shortcuts = find_shortcuts(self.trace, self._is_binary, self._is_adopted)
        branches, without_bypass, projections, at_shortcuts = self._settle(shortcuts)
        merged = layers_to_stop(
            self.trace,
            self._is_binary,
            self._is_adopted,
            branches,
            {shortcut.op.index for shortcut in shortcuts} - set(branches),
            without_bypass,
        )
        found: list[tuple[int, Decision]] = list(at_shortcuts)
        for path, layer in self.layers.items():
            action, reason, rule = self.decided[path]
            if path in projections:
                action, reason = projections[path]
                rule = CONTRACT
            carries = path not in without_bypass and path not in merged
            if action == "binarize" and path in merged:
                reason += "; no bypass, the signal would grow at every merge"
            elif action == "binarize" and not carries:
                reason += "; no bypass, the block's own shortcut carries the signal"
            decision = Decision(
                site=path,
                part="layer",
                kind=type(layer.module).__name__,
                action=action,
                reason=reason,
                rule=rule,
                shape=tuple(layer.module.weight.shape),
                norm=self.norms.get(path) if action != "keep" else None,
                carries=carries,
                like=self._alike.get(path),
            )
            first = layer.ops[0].index if layer.ops else len(self.trace.ops)
            found.append((first, decision))
        found += self._activations(projections)
        found.sort(key=lambda pair: pair[0])
        unmatched = tuple(
            str(rule)
            for rule in self.policy.rules
            if not any(self._matches(rule, layer) for layer in self.layers.values())
        )
        rewritten = {d.scope for _, d in found if d.rewrite}
        return Plan(
            self.policy,
            tuple(d for _, d in found),
            dict(self.opaque),
            origin,
            unmatched,
            {scope: given for scope in sorted(rewritten) if (given := self._arguments[scope])},
            _size(self.trace.model),
        )

    # Layers

    def _decide(self, layer: Layer) -> tuple[str, str, str]:
        hindrance = obstacle(layer.module)
        if hindrance is None and not layer.ops and "linear" in layer.kinds:
            hindrance = "it is never called itself; its weight may be used by another module"
        if hindrance is None and id(layer.module.weight) in self.trace.direct:
            hindrance = "its weight is used outside of its own forward"
        for rule in self.policy.rules:
            if self._matches(rule, layer):
                if rule.action == "binarize" and hindrance is not None:
                    return "keep", hindrance, CONTRACT
                reason = rule.reason
                if not layer.ops:
                    reason += "; the forward pass never calls it"
                return rule.action, reason, str(rule)
        return "keep", "no rule of the policy matches it", CONTRACT

    @staticmethod
    def _matches(rule: Rule, layer: Layer) -> bool:
        return matches(
            rule,
            name=layer.path,
            roles=layer.roles,
            kinds=layer.kinds,
            cls=type(layer.module).__name__,
        )

    def _is_binary(self, op: Op) -> bool:
        return op.path in self.binary

    def _is_adopted(self, op: Op) -> bool:
        return any(self.norms.get(path) == op.path for path in self.binary)

    def _adoptable(self) -> dict[str, str]:
        """Per layer the BatchNorm that takes its output, and nothing else does, at every call."""
        pairs: dict[str, set[str | None]] = defaultdict(set)
        sources: dict[str, set[str | None]] = defaultdict(set)
        for op in self.trace.ops:
            if op.kind == "layer" and op.path is not None:
                followers = [self.trace.ops[i] for i in self.trace.consumers[op.index]]
                norm = followers[0] if len(followers) == 1 else None
                adopted = norm is not None and norm.kind == "norm" and norm.path is not None
                pairs[op.path].add(norm.path if norm is not None and adopted else None)
            elif op.kind == "norm" and op.path is not None:
                before = self.trace.ops[op.inputs[0]] if op.inputs else None
                is_layer = before is not None and before.kind == "layer"
                sources[op.path].add(before.path if before is not None and is_layer else None)
        result: dict[str, str] = {}
        for path, norms in pairs.items():
            (norm_path, *more) = norms
            if more or norm_path is None or sources[norm_path] != {path}:
                continue
            norm_module, layer = self.modules[norm_path], self.modules[path]
            width = getattr(layer, "out_channels", getattr(layer, "out_features", None))
            if is_batch_norm(norm_module) and norm_module.num_features == width:
                result[path] = norm_path
        return result

    # Shortcuts

    def _settle(
        self, shortcuts: list[Shortcut]
    ) -> tuple[dict[int, int], set[str], dict[str, tuple[str, str]], list[tuple[int, Decision]]]:
        branches: dict[int, int] = {}
        without: set[str] = set()
        projections: dict[str, tuple[str, str]] = {}
        decisions: list[tuple[int, Decision]] = []
        by_place: dict[tuple[str, int], list[Shortcut]] = defaultdict(list)
        for shortcut in shortcuts:
            by_place[shortcut.op.scope, shortcut.op.ordinal].append(shortcut)
        for (scope, ordinal), calls in by_place.items():
            first = calls[0]
            every_call = len(calls) == self.trace.calls.get(scope, 1) if scope else True
            carries = min(s.carries for s in calls)
            alike = len({s.branch for s in calls}) == 1 and every_call
            own = [p.path or "" for p in first.projection]
            removable = all(self._only_used_here(p, first.op) for p in first.projection)
            inside = all(path.startswith(f"{scope}." if scope else "") for path in own)
            can_go = carries == WHOLE and alike and removable and inside
            if can_go and self._can_rewrite(scope):
                action = "drop"
                reason = "every layer of the block carries the signal by its own bypass"
                branches.update({s.op.index: s.op.inputs[s.branch] for s in calls})
                for path in own:
                    projections[path] = ("remove", "projection of a shortcut that is gone")
                    self._alike[path] = self._layer_alike(first)
                for scale in {(s.scope, s.ordinal): s for c in calls for s in c.scales}.values():
                    decisions.append((scale.index, self._scale(scale)))
            else:
                action = "keep"
                if carries >= GATED:
                    why = (
                        "a gate damps the signal on the branch"
                        if carries == GATED
                        else (self.opaque.get(scope) or "its shortcut is used elsewhere too")
                    )
                    without |= {layer.path or "" for s in calls for layer in s.last}
                    reason = f"{why}; the branch ends without a bypass instead"
                else:
                    reason = (
                        "the branch does not carry the signal through (a norm or a float layer)"
                    )
                if removable:
                    for path in own:
                        projections[path] = ("bypass", "projection shortcut becomes the bypass")
            decisions.append(
                (
                    first.op.index,
                    Decision(
                        site=f"{scope_name(scope)}:add#{ordinal}",
                        part="addition",
                        kind=first.op.name,
                        action=action,
                        reason=reason,
                        rule=CONTRACT,
                        scope=scope,
                        ordinal=ordinal,
                        rewrite=action == "drop",
                        operand=first.branch,
                    ),
                )
            )
        return branches, without, projections, decisions

    def _scale(self, op: Op) -> Decision:
        ok = self._can_rewrite(op.scope)
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

    def _only_used_here(self, projection: Op, addition: Op) -> bool:
        front = [projection.index]
        while front:
            for consumer in self.trace.consumers[front.pop()]:
                if consumer == addition.index:
                    continue
                if self.trace.ops[consumer].kind not in ("norm", "drop", "shape", "pool"):
                    return False
                front.append(consumer)
        calls = self.layers[projection.path or ""].ops
        return len({op.scope for op in calls}) == 1

    def _layer_alike(self, shortcut: Shortcut) -> str | None:
        """The layer that ends the branch, if both sides reach the addition at their own size."""
        ends = []
        for end in shortcut.op.inputs:
            op = self.trace.ops[end]
            while op.kind in ("norm", "drop", "activation") and len(op.inputs) == 1:
                op = self.trace.ops[op.inputs[0]]
            ends.append(op)
        branch, other = ends[shortcut.branch], ends[1 - shortcut.branch]
        same = branch.shape[2:] == other.shape[2:] and len(branch.shape) > 2
        return branch.path if branch.kind == other.kind == "layer" and same else None

    def _can_rewrite(self, scope: str) -> bool:
        if scope not in self._rewritable:
            module = self.modules[scope]
            called = self.trace.arguments.get(scope, ((), {}))
            # Numbers stay arguments if they can. Where one chooses the way, it becomes a constant,
            # but not in the network's own signature: that is the user's to call.
            tries = [constants(module, *called)]
            if scope:
                tries.append(constants(module, *called, numbers=True))
            for given in tries:
                self._arguments[scope] = given
                try:
                    cause = fits(trace_scope(module, given), self.trace, scope)
                except ModelError as error:
                    cause = error.rule
                if cause is None:
                    break
            self._rewritable[scope] = cause is None
            if cause is not None:
                self.opaque[scope] = cause
        return self._rewritable[scope]

    # Activations

    def _activations(self, projections: Mapping[str, Any]) -> list[tuple[int, Decision]]:
        def unit(op: Op) -> bool:
            return op.path in self.binary and op.path not in projections

        fed = fed_by(self.trace, unit)
        roles = {path: layer.roles for path, layer in self.layers.items()}
        head = only_prediction_follows(
            self.trace, lambda op: "prediction" in roles.get(op.path or "", ())
        )
        places: dict[tuple[str, str, int], list[Op]] = defaultdict(list)
        for op in self.trace.ops:
            if op.kind == "activation" or self._has_activation(op):
                places[op.scope, op.path or "", op.ordinal].append(op)
        uses: dict[str, int] = defaultdict(int)
        for _, path, _ in places:
            uses[path] += 1
        decisions = []
        for (scope, path, ordinal), ops in places.items():
            op = ops[0]
            inside_norm = op.kind != "activation"
            site = f"{path}.act" if inside_norm else path
            if not path:
                site = f"{scope_name(scope)}:{op.name}#{ordinal}"
            rewrite = not path or uses[path] > 1
            dims = {fed[o.index] for o in ops}
            widths = {o.shape[d] for o in ops for d in dims if d and len(o.shape) > abs(d)}
            action, rule, reason = "keep", CONTRACT, ""
            if self.policy.unit.activation is None or self.policy.replace_activations == "none":
                reason, rule = "the policy leaves activations", f"policy {self.policy.name}"
            elif not any(dims):
                reason = "no binary layer feeds it"
            elif head[op.index] and self.policy.replace_activations == "all-but-head":
                reason, rule = "stands before the prediction", f"policy {self.policy.name}"
            elif len(dims) > 1 or len(widths) != 1:
                reason = "its calls differ in their channels"
            elif rewrite and not self._can_rewrite(scope):
                reason = f"the forward that calls it is kept: {self.opaque[scope]}"
            else:
                action = "replace"
                reason = f"follows a binary layer; becomes {self.policy.unit.activation}"
            decisions.append(
                (
                    op.index,
                    Decision(
                        site=site,
                        part="activation",
                        kind=type(self.modules[path].act).__name__ if inside_norm else op.name,
                        action=action,
                        reason=reason,
                        rule=rule,
                        scope=scope,
                        ordinal=ordinal,
                        rewrite=rewrite and action == "replace",
                        channels=widths.pop() if action == "replace" else 0,
                        channel_dim=dims.pop() if action == "replace" else 1,
                    ),
                )
            )
        return decisions

    def _has_activation(self, op: Op) -> bool:
        """Whether a norm applies an activation too (timm's BatchNormAct2d and its like)."""
        if op.kind != "norm" or op.path is None:
            return False
        act = getattr(self.modules[op.path], "act", None)
        return isinstance(act, nn.Module) and not isinstance(act, nn.Identity)


def _size(model: nn.Module) -> dict[str, int]:
    """Parameters of a network and bytes of its state_dict, each tensor once."""
    tensors = {id(x): x for x in model.state_dict(keep_vars=True).values() if isinstance(x, Tensor)}
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(x.numel() * x.element_size() for x in tensors.values()),
    }
