"""What of a converted network is fitted, and where its float network has the values to match."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_iter

from binarize.errors import ModelError
from binarize.graph.classify import is_batch_norm, module_kind
from binarize.graph.decisions import ActivationDecision, LayerDecision
from binarize.graph.layers import effective_weight
from binarize.graph.plan import Plan
from binarize.graph.recorder import Op
from binarize.graph.trace import Trace
from binarize.graph.watch import Spot, spot
from binarize.nn.base import BinaryLayer
from binarize.nn.int8 import Int8Layer
from binarize.nn.parts import ACTIVATIONS
from binarize.nn.treated import TreatedLayer

__all__ = ["Pair", "Reading", "Target", "find_pairs", "other_teacher"]

_ACTIVATIONS = tuple(ACTIVATIONS.values())


@dataclass(frozen=True)
class Reading:
    """Something that a run of the float network shows.

    Attributes:
        spot: An operation.
        norm: A batch norm to apply to its first operand, as norms may apply an activation
            themselves; ``None`` takes the operation's result.
    """

    spot: Spot
    norm: Any = None

    def read(self, operands: Any, result: Tensor) -> Tensor:
        """Return a copy, as the run may overwrite what it shows."""
        if self.norm is None:
            return result.detach().clone()
        source = next(x for x in tree_iter(operands) if isinstance(x, Tensor))
        norm = self.norm
        mean, variance = norm.running_mean, norm.running_var
        return F.batch_norm(
            source, mean, variance, norm.weight, norm.bias, mean is None, 0.0, norm.eps
        )


@dataclass(frozen=True)
class Target:
    """A value of the float network, for the student to match.

    Attributes:
        value: Where it is.
        before: What has to be subtracted, or ``None``: the operand of an addition that lies behind
            the activation there, and that the unit's bypass replaces.
        after: What has to be added, or ``None``: what that addition returns.
    """

    value: Reading
    before: Reading | None = None
    after: Reading | None = None

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What it is made of."""
        return tuple(one for one in (self.value, self.before, self.after) if one is not None)

    def combine(self, seen: Mapping[Reading, Tensor]) -> Tensor:
        """Return the value."""
        value = seen[self.value]
        if self.before is not None and self.after is not None:
            value = value + (seen[self.after] - seen[self.before])
        return value


@dataclass
class Pair:
    """Something to fit, and the values to match.

    Attributes:
        kind: ``"unit"``, ``"activation"``, ``"norm"`` or ``"range"`` (of an 8-bit layer's input,
            which is only observed).
        name: Dotted name in the converted network.
        module: What is fitted.
        orders: Position of each of its calls in the forward pass.
        targets: The float network's values, one per call; empty for ranges.
        weight: Units: the float layer's weight; ``None`` if the latent weight is not fitted.
    """

    kind: str
    name: str
    module: Any
    orders: list[int] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    weight: Tensor | None = None


def find_pairs(student: nn.Module, teacher: nn.Module, plan: Plan, trace: Trace) -> list[Pair]:
    """Find what is fitted.

    Args:
        student: The converted network.
        teacher: The float network it came from.
        plan: The student's plan.
        trace: A run of the teacher.

    Returns:
        The pairs.

    Raises:
        ModelError: The teacher is not the network that was converted.
    """
    _check_teacher(teacher, plan)
    finder = _Finder(student, teacher, plan, trace)
    return [*finder.units(), *finder.activations(), *finder.norms(), *finder.ranges()]


def _check_teacher(teacher: nn.Module, plan: Plan) -> None:
    modules = dict(teacher.named_modules(remove_duplicate=False))
    if any(isinstance(module, TreatedLayer) for module in modules.values()):
        raise ModelError(
            "teacher",
            type(teacher).__name__,
            "has binary or 8-bit layers itself",
            "give the float network that the student was converted from",
        )
    for decision in plan.layers:
        weight = getattr(modules.get(decision.site), "weight", None)
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else None
        if shape != decision.shape:
            raise other_teacher(
                decision.site,
                "there is no such layer"
                if shape is None
                else f"its weight has shape {shape}, in the student {decision.shape}",
            )


def other_teacher(site: str, why: str) -> ModelError:
    """Return the error about a teacher that is not the network that was converted."""
    return ModelError(
        "teacher", site, why, "give the float network that the student was converted from"
    )


class _Finder:
    def __init__(self, student: nn.Module, teacher: nn.Module, plan: Plan, trace: Trace) -> None:
        self.student, self.teacher, self.plan, self.trace = student, teacher, plan, trace
        self._ours = dict(student.named_modules(remove_duplicate=False))
        self._theirs = dict(teacher.named_modules(remove_duplicate=False))
        self._calls: dict[int, list[Op]] = defaultdict(list)
        for op in trace.ops:
            if op.path is not None:
                self._calls[id(self._theirs.get(op.path))].append(op)
        self._dropped = {
            (d.scope, "add", d.ordinal): d.operand for d in plan.additions if d.action == "drop"
        }
        self._dropped |= {(d.scope, "mul", d.ordinal): 0 for d in plan.scales}
        self._replaced = {
            (d.scope, self._path_of(d), d.ordinal): d
            for d in plan.activations
            if d.action == "replace"
        }
        tied = Counter(id(m.weight) for m in student.modules() if isinstance(m, BinaryLayer))
        self._tied = {key for key, count in tied.items() if count > 1}

    def units(self) -> Iterator[Pair]:
        done = set()
        for decision in self.plan.layers:
            unit = self._ours.get(decision.site)
            if decision.action != "binarize" or id(unit) in done:
                continue
            done.add(id(unit))
            if not isinstance(unit, BinaryLayer):
                raise ModelError(
                    "student",
                    decision.site,
                    "its plan says that this layer is binary, and it is not",
                    "give the network as it was converted or loaded",
                )
            layer = self._theirs[decision.site]
            ops = self._calls[id(layer)]
            if not ops:
                continue  # only training calls it
            targets = [self._target(op, decision) for op in ops]
            single = unit.quantizer.copies == 1 and unit.quantizer.bits == 1
            weight = None
            if single and id(unit.weight) not in self._tied:
                weight = effective_weight(layer).detach()
            yield Pair("unit", decision.site, unit, _orders(ops), targets, weight)

    def activations(self) -> Iterator[Pair]:
        found: dict[int, Pair] = {}
        names = self._names()
        for op in self.trace.ops:
            decision = self._replaced.get((op.scope, op.path or "", op.ordinal))
            if decision is None or op.kind not in ("activation", "norm"):
                continue
            name = names[id(decision)]
            module = self._ours.get(name)
            if not isinstance(module, _ACTIVATIONS):
                raise ModelError(
                    "student",
                    name,
                    "its plan says that this activation was replaced, and it was not",
                    "give the network as it was converted or loaded",
                )
            pair = found.setdefault(id(module), Pair("activation", name, module))
            pair.targets.append(Target(Reading(spot(self._walk(op)))))
            pair.orders.append(op.index)
        yield from found.values()

    def norms(self) -> Iterator[Pair]:
        for name, module in self.student.named_modules():
            other = self._theirs.get(name)
            if not (is_batch_norm(module) and is_batch_norm(other)):  # type: ignore[arg-type]
                continue
            ops = self._calls[id(other)]
            if ops:
                targets = [Target(Reading(spot(op), other)) for op in ops]
                yield Pair("norm", name, module, _orders(ops), targets)

    def ranges(self) -> Iterator[Pair]:
        for name, module in self.student.named_modules():
            ops = self._calls[id(self._theirs.get(name))]
            if isinstance(module, Int8Layer) and ops:
                yield Pair("range", name, module.input_range, _orders(ops))

    def _names(self) -> dict[int, str]:
        """Name in the student of each replaced activation, by the decision's identity."""
        adopted = {d.norm for d in self.plan.layers if d.action == "binarize" and d.norm}
        names: dict[int, str] = {}
        taken: set[str] = set()
        for decision in self.plan.activations:
            if decision.action != "replace":
                continue
            name = decision.site
            if decision.rewrite:
                # As the rewriting names them.
                scope = f"{decision.scope}." if decision.scope else ""
                owner = self._theirs.get(decision.scope)
                name = f"{scope}prelu_{decision.ordinal}"
                while name in taken or hasattr(owner, name.removeprefix(scope)):
                    name += "_"
                taken.add(name)
            elif name.removesuffix(".act") in adopted:
                name = name.removesuffix(".act")
            names[id(decision)] = name
        return names

    def _target(self, op: Op, decision: LayerDecision) -> Target:
        """Where the teacher has what a unit's call returns."""
        norm = None
        if decision.norm is not None:
            op = next(self._op(i) for i in self.trace.consumers[op.index])
            norm = self._theirs[decision.norm]
            if not isinstance(getattr(norm, "act", None), nn.Module):
                norm = None
        place = op if norm is not None else self._walk(op)
        activation = op if norm is not None else self._next_activation(place)
        if activation is not None:
            # An addition behind the activation, which the bypass replaces too.
            end = self._walk(activation)
            if end is not activation:
                before, after = Reading(spot(activation)), Reading(spot(end))
                return Target(Reading(spot(place), norm), before, after)
        return Target(Reading(spot(place), norm))

    def _path_of(self, decision: ActivationDecision) -> str:
        """Return the path of an activation's operation in a trace, "" for functions."""
        path = "" if ":" in decision.site else decision.site
        norm = self._theirs.get(path.removesuffix(".act"))
        # A norm that applies the activation itself is one operation.
        own = path.endswith(".act") and norm is not None and module_kind(norm) == "norm"
        return path.removesuffix(".act") if own else path

    def _op(self, index: int) -> Op:
        return self.trace.ops[index]

    def _walk(self, op: Op) -> Op:
        """Go on to the last dropped operation in whose place the student has a value."""
        while (after := self._dropped_after(op)) is not None:
            op = after
        return op

    def _dropped_after(self, op: Op) -> Op | None:
        for follower in map(self._op, self.trace.consumers[op.index]):
            if follower.kind == "drop" and follower.path is None:
                found = self._dropped_after(follower)
                if found is not None:
                    return found
            operand = self._dropped.get((follower.scope, follower.kind, follower.ordinal))
            if operand is None or follower.path is not None:
                continue
            if follower.inputs[min(operand, len(follower.inputs) - 1)] == op.index:
                return follower
        return None

    def _next_activation(self, op: Op) -> Op | None:
        """Return the replaced activation that takes a value, if it alone does."""
        followers = [self._op(i) for i in self.trace.consumers[op.index]]
        if len(followers) != 1:
            return None
        (only,) = followers
        known = (only.scope, only.path or "", only.ordinal) in self._replaced
        return only if known and only.kind == "activation" else None


def _orders(ops: list[Op]) -> list[int]:
    return [op.index for op in ops]
