"""From a budget to a policy: one rule for each layer that it decides about."""

from __future__ import annotations

import glob
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from binarize.budget.amount import Budget
from binarize.budget.costs import Costs
from binarize.budget.knapsack import Choice, front
from binarize.errors import BinarizeError
from binarize.graph import Decision
from binarize.latency import Profile
from binarize.policy import Match, Policy, Rule, with_overrides
from binarize.policy.match import Overrides
from binarize.policy.more_bits import INT8, MoreBits, MoreBitsRule, more_bits_rules
from binarize.report import Sensitivity, SiteSensitivity

__all__ = ["choose"]

# What each kind of budget counts a layer's loss by; the smooth one where any will do.
_MEASURES = {"drop": "drop", "agreement": "disagreement"}


@dataclass(frozen=True)
class _Option:
    """What a layer may be other than as the policy has it.

    Attributes:
        name: Name of the policy whose bits it gets; ``None`` is float.
        rule: What a rule says of it.
        costs: What it costs more than by the policy, of each kind.
        loss: What is lost with it.
    """

    name: str | None
    rule: MoreBitsRule
    costs: tuple[float, ...]
    loss: float


@dataclass(frozen=True)
class _Layer:
    """A layer to decide about.

    Attributes:
        decision: What the policy alone decides.
        loss: What is lost by making it binary; 1 for every layer if nothing is known.
        place: Its place among the layers by loss, from 1.
        options: What it may be instead; the last is float.
    """

    decision: Decision
    loss: float
    place: int
    options: tuple[_Option, ...]


# The option of each layer, by their places; a layer that is not in it is as the policy has it.
_Chosen = Mapping[int, int]


def choose(
    model: nn.Module,
    policy: Policy,
    limits: Sequence[Budget],
    sensitivity: Sensitivity | Mapping[str, Any] | str | Path | None,
    overrides: Overrides | None,
    example_inputs: Any,
    more_bits: MoreBits = (),
    profile: Profile | None = None,
) -> Policy:
    """Make a policy that spends a budget on the layers that are worth most.

    Layers that the policy keeps, or the user's overrides, are left as they are. Others stay float,
    or get more bits where that is allowed. For a size, a number of operations or a latency the
    losses that are spared have the largest sum for which there is room; where several costs are
    limited, the largest that some weighting of the costs finds. For a drop or an agreement it takes
    the fewest bytes such that what is lost sums up to no more than allowed. Costs are exact for
    the plan that comes out.

    Args:
        model: The float network; unchanged.
        policy: The policy.
        limits: The budget: several costs, or one of any kind.
        sensitivity: The layers' losses: a :class:`~binarize.Sensitivity`, what its ``to_dict``
            gives, or its file. ``None`` counts every layer that runs the same, so that as many as
            possible stay float, those that cost least.
        overrides: The user's overrides; they come before the rules that are made here.
        example_inputs: As in :func:`binarize.plan`.
        more_bits: Policies whose bits a layer may get; the losses with them have to be known.
        profile: Latencies, which a limit of time needs.

    Returns:
        The policy with a rule in front for each layer that is decided about, with its reason.

    Raises:
        PolicyError: ``more_bits`` names no policy, or one without more bits.
        BinarizeError: The budget cannot be met, or needs nothing to be binary, or asks for
            sensitivities that are not given, or they are not this network's.
    """
    rules = more_bits_rules(more_bits)
    known = _opened(sensitivity)
    budget = _Limits(tuple(limits))
    costs = Costs(model, budget.kinds, overrides, example_inputs, profile)
    base = costs.plan(policy)
    open_ = [d for d in base.layers if d.action != "keep"]
    if not open_:
        return policy  # it is for the planner to refuse that
    losses, order = _losses(open_, budget, known)
    least = costs.of(policy)

    def option(decision: Decision, name: str | None, loss: float) -> _Option:
        rule = _FLOAT if name is None else rules[name]
        made = costs.of(_with(policy, [decision], budget, rule))
        return _Option(name, rule, tuple(a - b for a, b in zip(made, least, strict=True)), loss)

    layers = []
    for decision, loss, place in zip(open_, losses, order, strict=True):
        names = [name for name, rule in rules.items() if rule.suits(decision.action)]
        spared = _losses_with(decision, names, budget, known)
        options = [option(decision, name, left) for name, left in spared.items() if left < loss]
        options.append(option(decision, None, 0.0))
        layers.append(_Layer(decision, loss, place, tuple(options)))
    if not budget.is_cost:
        choices = front([[(o.costs[0], x.loss - o.loss) for o in x.options] for x in layers])
        return _ruled(policy, layers, _cheapest(choices, layers, limits[0]), budget, known)
    found = _candidates(layers, budget)
    room = [limit.limit - cost for limit, cost in zip(limits, least, strict=True)]
    while True:
        within = [c for c in found if all(a <= b for a, b in zip(c.costs, room, strict=True))]
        if not within:
            nearest = min(found, key=lambda c: max(0.0, *_excess(c.costs, room, limits)))
            reached = [a + b for a, b in zip(least, nearest.costs, strict=True)]
            raise BinarizeError(
                "budget",
                budget.text,
                f"the least that policy {policy.name!r} reaches is {budget.amounts(reached)}",
                "give at least that, or use another policy",
            )
        best = max(within, key=lambda c: c.value)
        if _all_float(best.chosen, layers):
            whole = _with(policy, open_, budget, _FLOAT)
            raise BinarizeError(
                "budget",
                budget.text,
                f"the network in float needs no more than {budget.amounts(costs.of(whole))}",
                "leave the conversion out, or give a smaller budget",
            )
        made = _ruled(policy, layers, best.chosen, budget, known)
        over = [a - limit.limit for a, limit in zip(costs.of(made), limits, strict=True)]
        if max(over) <= 0:
            return made
        # Layers share what costs something (a header, an activation): not all adds up.
        for number, excess in enumerate(over):
            if excess > 0:
                least_step = 1e-6 if limits[number].kind == "time" else 1
                room[number] = best.costs[number] - max(excess, least_step)


@dataclass(frozen=True)
class _Limits:
    """A budget as a whole, for people."""

    parts: tuple[Budget, ...]

    @property
    def text(self) -> str:
        return ",".join(part.text for part in self.parts)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is counted; for a budget of losses, the bytes that they take."""
        return tuple(part.kind if part.is_cost else "bytes" for part in self.parts)

    @property
    def is_cost(self) -> bool:
        return self.parts[0].is_cost

    @property
    def measure(self) -> str:
        """What a layer's loss is counted by; the smooth one where any will do."""
        return _MEASURES.get(self.parts[0].kind, "distance")

    def amounts(self, values: Sequence[float]) -> str:
        """Costs with their units."""
        pairs = zip(values, self.kinds, strict=True)
        return " and ".join(_amount(value, kind) for value, kind in pairs)


_FLOAT = MoreBitsRule("keep")
# Weightings of two costs that are looked at.
_STEPS = 32


@dataclass(frozen=True)
class _Candidate:
    costs: tuple[float, ...]
    value: float
    chosen: _Chosen


def _candidates(layers: Sequence[_Layer], budget: _Limits) -> list[_Candidate]:
    """Choices that no other beats in value and a weighting of the costs."""
    count = len(budget.parts)
    weightings: list[tuple[float, ...]] = [(1.0,)]
    if count > 1:
        shares = [w for w in itertools.product(range(_STEPS + 1), repeat=count) if sum(w) == _STEPS]
        weightings = [
            tuple(s / part.limit for s, part in zip(w, budget.parts, strict=True)) for w in shares
        ]
    found = []
    for weights in weightings:
        groups = [
            [
                (sum(w * c for w, c in zip(weights, o.costs, strict=True)), x.loss - o.loss)
                for o in x.options
            ]
            for x in layers
        ]
        # Where costs are weighted it is no exact search anyway.
        for choice in front(groups) if count == 1 else front(groups, 2000):
            taken = choice.items()
            spent = [layers[i].options[place].costs for i, place in taken.items()]
            costs = tuple(sum(s[k] for s in spent) for k in range(count))
            found.append(_Candidate(costs, choice.value, taken))
    return found


def _excess(costs: Sequence[float], room: Sequence[float], limits: Sequence[Budget]) -> list[float]:
    """By which shares of the limits costs are above what there is room for."""
    return [(a - b) / x.limit for a, b, x in zip(costs, room, limits, strict=True)]


def _opened(given: Any) -> Sensitivity | None:
    if given is None or isinstance(given, Sensitivity):
        return given
    if isinstance(given, str | Path):
        return Sensitivity.load(given)
    try:
        return Sensitivity.from_dict(given)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BinarizeError(
            "sensitivity",
            type(given).__name__,
            f"is not the result of binarize.sensitivity ({type(error).__name__}: {error})",
            "give the result, its to_dict(), or the file sensitivity.json",
        ) from error


def _losses(
    decisions: Sequence[Decision], budget: _Limits, known: Sensitivity | None
) -> tuple[list[float], list[int]]:
    """What binarizing each layer loses, not below 0, and its place by that."""
    if known is None:
        if not budget.is_cost:
            raise BinarizeError(
                "budget",
                budget.text,
                "what a layer loses has to be measured first",
                "give sensitivity=binarize.sensitivity(model, data, task=...), or its file",
            )
        # A layer that never runs loses nothing, and one of 8 bits next to nothing.
        idle = {"unused", "training"}
        losses = [float(idle.isdisjoint(d.roles) and d.action != "int8") for d in decisions]
        return losses, [1] * len(decisions)
    if not budget.is_cost and known.mode != "alone":
        raise BinarizeError(
            "sensitivity",
            known.mode,
            f"a budget of {budget.text!r} adds up what layers lose alone",
            "measure with mode='alone'",
        )
    rows: dict[str, SiteSensitivity] = {row.site: row for row in known.sites}
    measure = budget.measure
    losses = []
    for decision in decisions:
        loss = getattr(rows.get(decision.site), measure, None)
        if loss is None:
            raise BinarizeError(
                "sensitivity",
                decision.site,
                f"there is no {measure} for this layer",
                "measure this network with the same policy and overrides"
                + ", and a task" * (measure == "drop"),
            )
        losses.append(loss)
    # What is not a number is worse than all others together.
    worst = 1 + sum(max(loss, 0.0) for loss in losses if math.isfinite(loss))
    losses = [max(loss, 0.0) if math.isfinite(loss) else worst for loss in losses]
    ranks = sorted(losses, reverse=True)
    return losses, [ranks.index(loss) + 1 for loss in losses]


def _losses_with(
    decision: Decision, names: Sequence[str], budget: _Limits, known: Sensitivity | None
) -> dict[str, float]:
    """What a layer loses with the bits of each policy, not below 0."""
    measure = budget.measure
    rows = {} if known is None else {row.site: row.more for row in known.sites}
    losses = {}
    for name in names:
        loss = rows.get(decision.site, {}).get(name, {}).get(measure)
        if loss is None:
            # The error of the weights says little: the map stays binary.
            raise BinarizeError(
                "more_bits",
                name,
                f"what {decision.site} loses with these bits has to be measured first",
                f"give sensitivity=binarize.sensitivity(model, data, more_bits={list(names)}), or "
                "its file" + ", measured with a task" * (measure == "drop"),
            )
        losses[name] = max(loss, 0.0) if math.isfinite(loss) else math.inf
    return losses


def _all_float(chosen: _Chosen, layers: Sequence[_Layer]) -> bool:
    return len(chosen) == len(layers) and all(
        layers[i].options[place].name is None for i, place in chosen.items()
    )


def _cheapest(choices: Sequence[Choice], layers: Sequence[_Layer], budget: Budget) -> _Chosen:
    """The choice of the fewest bytes that keeps the losses of the others within the budget."""
    allowed = budget.limit if budget.kind == "drop" else 1 - budget.limit
    total = sum(layer.loss for layer in layers)
    # Sums of the same numbers in another order differ in their last bits.
    needed = (total - allowed) * (1 - 1e-12)
    chosen = next((c for c in choices if c.value >= needed), choices[-1]).items()
    if _all_float(chosen, layers) or total - choices[-1].value > allowed:
        smallest = [min([layer.loss, *(o.loss for o in layer.options[:-1])]) for layer in layers]
        loss = min(smallest)
        site = layers[smallest.index(loss)].decision.site
        reached = loss if budget.kind == "drop" else 1 - loss
        raise BinarizeError(
            "budget",
            budget.text,
            f"with a single layer binary, {site}, it is {reached:.4g} already",
            "allow more, or leave the conversion out",
        )
    return chosen


def _with(
    policy: Policy, decisions: Sequence[Decision], budget: _Limits, rule: MoreBitsRule
) -> Policy:
    """The policy with some layers float, or with more bits."""
    match = Match(name=tuple(glob.escape(d.site) for d in decisions))
    made = Rule(match, rule.action, f"budget of {budget.text}", rule.unit)
    return with_overrides(policy, [made])


def _ruled(
    policy: Policy,
    layers: Sequence[_Layer],
    chosen: _Chosen,
    budget: _Limits,
    known: Sensitivity | None,
) -> Policy:
    """The policy with a rule for each layer, that says why."""
    rules = []
    for number, layer in enumerate(layers):
        taken = layer.options[chosen[number]] if number in chosen else None
        reason = _reason(layer, taken, budget, known, len(layers))
        match = Match(name=(glob.escape(layer.decision.site),))
        # As the policy has it; what goes with an addition does so as a binary layer.
        usual = MoreBitsRule("int8" if layer.decision.action == "int8" else "binarize")
        rule = usual if taken is None else taken.rule
        rules.append(Rule(match, rule.action, reason, rule.unit))
    made = with_overrides(policy, rules)
    return replace(made, name=f"{policy.name}, {budget.text}")


def _reason(
    layer: _Layer, taken: _Option | None, budget: _Limits, known: Sensitivity | None, count: int
) -> str:
    option = taken or layer.options[-1]
    if known is None:
        why = "without sensitivities the layers that cost least come first"
    else:
        told = {
            "distance": "moves the output by {:.4f}",
            "drop": f"loses {{:.4f}} {known.metric}",
            "disagreement": "changes {:.1%} of the predictions",
        }[budget.measure]
        who = "binary alone" if known.mode == "alone" else "binary with all others"
        why = f"{who} it {told.format(layer.loss)}, place {layer.place} of {count}"
        if option.name is not None:
            why += f"; with these bits it {told.format(option.loss)}"
    if option.name is not None:
        cost = budget.amounts(option.costs)
        bits = "8 bits" if option.name == INT8 else f"bits of {option.name}"
        return f"{bits} by the budget of {budget.text}: {cost} more; {why}"
    what = f"{budget.amounts(option.costs)} more in float; {why}"
    if taken is not None:
        return f"kept by the budget of {budget.text}: {what}"
    if budget.is_cost:
        return f"no room in the budget of {budget.text}: {what}"
    return f"allowed by the budget of {budget.text}: {what}"


def _amount(value: float, kind: str) -> str:
    if kind == "time":
        return f"{math.ceil(value * 1000) / 1000:.3f} ms"
    unit = "OPs" if kind == "ops" else "B"
    size = abs(value)
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= factor:
            # Rounded up: what is told as the least has to be enough.
            digits = math.ceil(value / factor * 1000) / 1000
            return f"{digits:.3f} {prefix}{unit}"
    return f"{math.ceil(value)} {unit}"
