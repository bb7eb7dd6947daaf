"""Turn a budget into a policy: one rule for each layer that it decides about."""

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
from binarize.graph import LayerDecision
from binarize.latency import Profile
from binarize.policy import Match, Policy, Rule, with_overrides
from binarize.policy.match import Overrides
from binarize.policy.more_bits import INT8, MoreBits, MoreBitsRule, more_bits_rules
from binarize.report import Sensitivity, SiteSensitivity

__all__ = ["choose"]

# The measure of a layer's loss for each kind of budget; the smooth one where any will do.
_MEASURES = {"drop": "drop", "agreement": "disagreement"}


@dataclass(frozen=True)
class _Option:
    """An alternative to what the policy does to a layer.

    Attributes:
        name: Name of the policy whose bits the layer gets; ``None`` is float.
        rule: The corresponding rule.
        costs: Additional cost compared with the policy's choice, of each kind.
        loss: The loss with this alternative.
    """

    name: str | None
    rule: MoreBitsRule
    costs: tuple[float, ...]
    loss: float


@dataclass(frozen=True)
class _Layer:
    """A layer to decide about.

    Attributes:
        decision: The decision of the policy alone.
        loss: The loss if it is binary; 1 for every layer if nothing is known.
        place: Its rank by loss, from 1.
        options: The alternatives; the last one is float.
    """

    decision: LayerDecision
    loss: float
    place: int
    options: tuple[_Option, ...]


# The option of each layer, by index; for layers that are missing, the policy decides.
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
    """Make a policy that spends a budget where it avoids the largest losses.

    Layers that the policy or the user's overrides keep stay unchanged. Other layers stay in float,
    or get more bits if permitted. For a limit on size, operations or latency, the choice avoids the
    largest sum of losses that fits; with several limits, the largest that some weighting of the
    costs finds. For a drop or an agreement, it takes the fewest bytes whose losses sum up to no
    more than permitted. Costs are exact for the resulting plan.

    Args:
        model: The float network; it stays unchanged.
        policy: The policy.
        limits: The budget: several costs, or one of any kind.
        sensitivity: The layers' losses: a :class:`~binarize.Sensitivity`, its ``to_dict()``, or its
            file. ``None`` weights every layer that runs equally, which keeps as many layers as
            possible, the cheapest first.
        overrides: The user's overrides, which precede the rules made here.
        example_inputs: As in :func:`binarize.plan`.
        more_bits: Policies whose bits a layer may get; requires the losses with them.
        profile: Latencies, required for a time limit.

    Returns:
        The policy, preceded by a rule with a reason for each layer that the budget decides about.

    Raises:
        PolicyError: ``more_bits`` names no policy, or one without more bits.
        BinarizeError: The budget cannot be met, or requires nothing to be binary, or requires
            sensitivities that are missing or are not this network's.
    """
    rules = more_bits_rules(more_bits)
    known = _opened(sensitivity)
    budget = _Limits(tuple(limits))
    costs = Costs(model, budget.kinds, overrides, example_inputs, profile)
    base = costs.plan(policy)
    open_ = [d for d in base.layers if d.action != "keep"]
    if not open_:
        return policy  # the planner rejects it
    losses, order = _losses(open_, budget, known)
    least = costs.of(policy)

    def option(decision: LayerDecision, name: str | None, loss: float) -> _Option:
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
                f"the minimum of policy {policy.name!r} is {budget.amounts(reached)}",
                "give at least that, or use another policy",
            )
        best = max(within, key=lambda c: c.value)
        if _all_float(best.chosen, layers):
            whole = _with(policy, open_, budget, _FLOAT)
            raise BinarizeError(
                "budget",
                budget.text,
                f"the float network needs only {budget.amounts(costs.of(whole))}",
                "skip the conversion, or give a smaller budget",
            )
        made = _ruled(policy, layers, best.chosen, budget, known)
        over = [a - limit.limit for a, limit in zip(costs.of(made), limits, strict=True)]
        if max(over) <= 0:
            return made
        # Layers share some costs (a header, an activation), so costs do not simply add up.
        for number, excess in enumerate(over):
            if excess > 0:
                least_step = 1e-6 if limits[number].kind == "time" else 1
                room[number] = best.costs[number] - max(excess, least_step)


@dataclass(frozen=True)
class _Limits:
    """The budget as a whole, for messages."""

    parts: tuple[Budget, ...]

    @property
    def text(self) -> str:
        return ",".join(part.text for part in self.parts)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of cost; for a limit on losses, the bytes."""
        return tuple(part.kind if part.is_cost else "bytes" for part in self.parts)

    @property
    def is_cost(self) -> bool:
        return self.parts[0].is_cost

    @property
    def measure(self) -> str:
        """The measure of a layer's loss; the smooth one where any will do."""
        return _MEASURES.get(self.parts[0].kind, "distance")

    def amounts(self, values: Sequence[float]) -> str:
        """Format costs with their units."""
        pairs = zip(values, self.kinds, strict=True)
        return " and ".join(_amount(value, kind) for value, kind in pairs)


_FLOAT = MoreBitsRule("keep")
# The number of weightings of two costs to try.
_STEPS = 32


@dataclass(frozen=True)
class _Candidate:
    costs: tuple[float, ...]
    value: float
    chosen: _Chosen


def _candidates(layers: Sequence[_Layer], budget: _Limits) -> list[_Candidate]:
    """Return choices that no other choice beats in value and a weighting of the costs."""
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
        # Weighted costs make the search inexact in any case.
        for choice in front(groups) if count == 1 else front(groups, 2000):
            taken = choice.items()
            spent = [layers[i].options[place].costs for i, place in taken.items()]
            costs = tuple(sum(s[k] for s in spent) for k in range(count))
            found.append(_Candidate(costs, choice.value, taken))
    return found


def _excess(costs: Sequence[float], room: Sequence[float], limits: Sequence[Budget]) -> list[float]:
    """Return by which share of the limits the costs exceed the available amounts."""
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
    decisions: Sequence[LayerDecision], budget: _Limits, known: Sensitivity | None
) -> tuple[list[float], list[int]]:
    """Return the loss of each layer if binary, at least 0, and its rank."""
    if known is None:
        if not budget.is_cost:
            raise BinarizeError(
                "budget",
                budget.text,
                "this budget needs measured losses of the layers",
                "give sensitivity=binarize.sensitivity(model, data, task=...), or its file",
            )
        # A layer that never runs loses nothing, and an 8-bit layer almost nothing.
        idle = {"unused", "training"}
        losses = [float(idle.isdisjoint(d.roles) and d.action != "int8") for d in decisions]
        return losses, [1] * len(decisions)
    if not budget.is_cost and known.mode != "alone":
        raise BinarizeError(
            "sensitivity",
            known.mode,
            f"a budget of {budget.text!r} adds up the losses of single layers",
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
    # NaN is worse than all others together.
    worst = 1 + sum(max(loss, 0.0) for loss in losses if math.isfinite(loss))
    losses = [max(loss, 0.0) if math.isfinite(loss) else worst for loss in losses]
    ranks = sorted(losses, reverse=True)
    return losses, [ranks.index(loss) + 1 for loss in losses]


def _losses_with(
    decision: LayerDecision, names: Sequence[str], budget: _Limits, known: Sensitivity | None
) -> dict[str, float]:
    """Return the loss of a layer with the bits of each policy, at least 0."""
    measure = budget.measure
    rows = {} if known is None else {row.site: row.more for row in known.sites}
    losses = {}
    for name in names:
        loss = rows.get(decision.site, {}).get(name, {}).get(measure)
        if loss is None:
            # The weights' error says little: the feature map stays binary.
            raise BinarizeError(
                "more_bits",
                name,
                f"this needs the measured loss of {decision.site} with these bits",
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
    """Return the choice with the fewest bytes whose losses stay within the budget."""
    allowed = budget.limit if budget.kind == "drop" else 1 - budget.limit
    total = sum(layer.loss for layer in layers)
    # Sums of the same numbers in another order differ in the last bits.
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
            f"with only {site} binary, it is already {reached:.4g}",
            "allow more, or skip the conversion",
        )
    return chosen


def _with(
    policy: Policy, decisions: Sequence[LayerDecision], budget: _Limits, rule: MoreBitsRule
) -> Policy:
    """Return the policy with some layers in float or with more bits."""
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
    """Return the policy with a rule for each layer, including the reason."""
    rules = []
    for number, layer in enumerate(layers):
        taken = layer.options[chosen[number]] if number in chosen else None
        reason = _reason(layer, taken, budget, known, len(layers))
        match = Match(name=(glob.escape(layer.decision.site),))
        # The policy decides; layers that depend on a dropped addition are binary as well.
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
        why = "without sensitivities, the cheapest layers come first"
    else:
        effect = {
            "distance": "moves the output by {:.4f}",
            "drop": f"loses {{:.4f}} {known.metric}",
            "disagreement": "changes {:.1%} of the predictions",
        }[budget.measure]
        who = "binary alone" if known.mode == "alone" else "binary with all others"
        why = f"{who}, it {effect.format(layer.loss)}, place {layer.place} of {count}"
        if option.name is not None:
            why += f"; with these bits it {effect.format(option.loss)}"
    if option.name is not None:
        cost = budget.amounts(option.costs)
        bits = "8 bits" if option.name == INT8 else f"bits of {option.name}"
        return f"{bits} by the budget of {budget.text}: {cost} more; {why}"
    what = f"{budget.amounts(option.costs)} more in float; {why}"
    if taken is not None:
        return f"kept by the budget of {budget.text}: {what}"
    if budget.is_cost:
        return f"does not fit the budget of {budget.text}: {what}"
    return f"permitted by the budget of {budget.text}: {what}"


def _amount(value: float, kind: str) -> str:
    if kind == "time":
        return f"{math.ceil(value * 1000) / 1000:.3f} ms"
    unit = "OPs" if kind == "ops" else "B"
    size = abs(value)
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= factor:
            # Rounded up: the reported minimum must be sufficient.
            digits = math.ceil(value / factor * 1000) / 1000
            return f"{digits:.3f} {prefix}{unit}"
    return f"{math.ceil(value)} {unit}"
