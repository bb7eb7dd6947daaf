"""A conversion as data: every decision, its rule and its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from binarize.nn.spec import UnitSpec
from binarize.nn.treatments import TREATMENTS
from binarize.page import Markup, Paged
from binarize.policy.loader import from_dict
from binarize.policy.schema import Policy, format_unit

__all__ = ["CONTRACT", "Decision", "Plan"]

# The rule of decisions that the converter makes rather than the policy.
CONTRACT = "contract"


@dataclass(frozen=True)
class Decision:
    """What happens to one site of the network, and why.

    Attributes:
        site: Dotted name of the layer or activation, or ``scope:operation#n`` for the n-th such
            operation in a module's own forward.
        part: ``"layer"``, ``"activation"``, ``"addition"`` or ``"scale"``.
        kind: Class of the module or name of the function.
        action: Layers: ``"binarize"``, ``"keep"``, ``"int8"``, ``"bypass"`` (a projection shortcut
            becomes the parameter-free bypass) or ``"remove"`` (a projection whose block addition
            is removed).
            Activations: ``"replace"`` or ``"keep"``. Additions, scales: ``"drop"`` or ``"keep"``.
        reason: Why, in words.
        rule: The rule that decided; ``"contract"`` is the converter itself.
        shape: Shape of the layer's weight.
        norm: Layers: name of the norm that moves into the binary layer, or is removed with it.
        carries: Binary layers: whether the layer has the full-precision bypass.
        scope: Name of the module whose forward holds the operation.
        ordinal: Position among the scope's operations of this kind.
        rewrite: Whether the scope's forward is rewritten (otherwise a module is replaced).
        operand: Additions and scales: the operand that stays.
        channels: Activations: number of channels.
        channel_dim: Activations: 1, or -1 for channels-last tensors.
        like: Removed layers: a remaining layer whose output has as many positions at any input
            size, for counting the removed operations; ``None`` if there is none.
        roles: Layers: what the layer does in this network, keys of
            ``binarize.policy.schema.ROLES``, in alphabetical order.
        unit: Layers: overrides of the policy's unit, see :meth:`Plan.unit`; ``None`` if there are
            none.
    """

    site: str
    part: str
    kind: str
    action: str
    reason: str
    rule: str
    shape: tuple[int, ...] = ()
    norm: str | None = None
    carries: bool = True
    scope: str = ""
    ordinal: int = 0
    rewrite: bool = False
    operand: int = 0
    channels: int = 0
    channel_dim: int = 1
    like: str | None = None
    roles: tuple[str, ...] = ()
    unit: Mapping[str, Any] | None = None

    @property
    def weights(self) -> int:
        """The number of weights of a layer."""
        count = 1 if self.shape else 0
        for length in self.shape:
            count *= length
        return count


_DEFAULTS = {
    name: value.default for name, value in Decision.__dataclass_fields__.items() if name != "site"
}


@dataclass(frozen=True)
class Plan(Paged):
    """All decisions of a conversion.

    Attributes:
        policy: The policy, overrides included.
        decisions: In the network's order of execution; layers that never run come last.
        opaque: Modules whose own forward could not be rewritten, with the cause.
        origin: How to build the float network by name, if it came from a known library.
        unmatched: Rules of the policy that matched no layer.
        arguments: Per rewritten forward, the non-tensor arguments (``None``, flags, strings) of the
            run; they determine the code path.
        reference: Size of the float network: ``"params"``, and ``"bytes"`` of its state_dict.
        example: Shapes of the tensors that the network ran on if all inputs are positional
            floating-point tensors, else empty. Equal plans may come from different shapes.
        heads: Layers that have another number of output channels than in the float network, with
            that number: the network is for another task, see :func:`binarize.add_task`.
    """

    policy: Policy
    decisions: tuple[Decision, ...]
    opaque: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, Any] | None = None
    unmatched: tuple[str, ...] = ()
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reference: Mapping[str, int] = field(default_factory=dict)
    example: tuple[tuple[int, ...], ...] = field(default=(), compare=False)
    heads: Mapping[str, int] = field(default_factory=dict)

    def part(self, part: str) -> tuple[Decision, ...]:
        """Return the decisions about one part: layers, activations, additions or scales."""
        return tuple(d for d in self.decisions if d.part == part)

    @property
    def layers(self) -> tuple[Decision, ...]:
        """Return the decisions about convolutions and linear layers."""
        return self.part("layer")

    def unit(self, decision: Decision) -> UnitSpec:
        """Return the unit that a layer's decision specifies."""
        return self.policy.unit.changed(decision.unit or {})

    @property
    def binary_share(self) -> float:
        """Return the share of the remaining layers' weights that become binary, 0 to 1."""
        total = sum(d.weights for d in self.layers if d.action in TREATMENTS)
        return sum(d.weights for d in self.layers if d.action == "binarize") / max(total, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; :meth:`from_dict` reads it."""
        rows = []
        for decision in self.decisions:
            row = asdict(decision)
            rows.append({k: v for k, v in row.items() if k not in _DEFAULTS or v != _DEFAULTS[k]})
        return {
            "policy": self.policy.to_dict(),
            "decisions": rows,
            "opaque": dict(self.opaque),
            "origin": self.origin,
            "unmatched": list(self.unmatched),
            "arguments": {scope: dict(given) for scope, given in self.arguments.items()},
            "reference": dict(self.reference),
            "example": [list(shape) for shape in self.example],
            **({"heads": dict(self.heads)} if self.heads else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Read what :meth:`to_dict` wrote."""
        decisions = tuple(
            Decision(**{**row, **{key: tuple(row.get(key, ())) for key in ("shape", "roles")}})
            for row in data["decisions"]
        )
        return cls(
            from_dict(data["policy"]),
            decisions,
            dict(data["opaque"]),
            data["origin"],
            tuple(data["unmatched"]),
            dict(data["arguments"]),
            dict(data["reference"]),
            tuple(tuple(map(int, shape)) for shape in data.get("example", ())),
            dict(data.get("heads", {})),
        )

    def diff(self, other: Plan) -> list[str]:
        """List what another plan does differently, one line per site and part of the unit."""
        units = [plan.policy.to_dict()["unit"] for plan in (self, other)]
        lines = [
            f"unit.{key}: {units[0].get(key)!r} -> {units[1].get(key)!r}"
            for key in dict.fromkeys([*units[0], *units[1]])
            if units[0].get(key) != units[1].get(key)
        ]
        mine, theirs = ({_place(d): d for d in plan.decisions} for plan in (self, other))
        places = list(dict.fromkeys([*mine, *theirs]))
        # An activation module that several forwards call has a decision in each.
        uses = Counter(site for _, site, _, _ in places)
        for place in places:
            _, site, scope, ordinal = place
            before, after = _describe(mine.get(place)), _describe(theirs.get(place))
            if before != after:
                where = f" called by {scope or '(root)'} #{ordinal}" if uses[site] > 1 else ""
                lines.append(f"{site}{where}: {before} -> {after}")
        return lines

    def _page(self) -> str:
        from binarize.graph.plan_page import plan_page

        return plan_page(self)

    def _notebook(self) -> Markup:
        from binarize.graph.plan_page import notebook_html

        return notebook_html(self)

    def headline(self) -> str:
        """Return the policy, the inputs and the number of decisions of each kind in one line."""
        counts: dict[tuple[str, str], int] = {}
        for d in self.decisions:
            counts[d.part, d.action] = counts.get((d.part, d.action), 0) + 1
        listed = ", ".join(f"{n} {part}(s) {action}" for (part, action), n in counts.items())
        at = " and ".join("×".join(map(str, shape)) for shape in self.example)
        made = f" for inputs of {at}" if at else ""
        return f"Plan by policy {self.policy.name!r}{made}: {listed}"

    def __str__(self) -> str:
        lines = [self.headline()]
        lines += [
            f"  {d.action:<9} {d.site}  [{d.kind}{list(d.shape) or ''}] {d.reason} ({d.rule})"
            for d in self.decisions
        ]
        lines += [f"  not traced {scope or '(root)'}: {why}" for scope, why in self.opaque.items()]
        lines += [f"  rule matched nothing: {rule}" for rule in self.unmatched]
        return "\n".join(lines)


def _place(decision: Decision) -> tuple[str, str, str, int]:
    return decision.part, decision.site, decision.scope, decision.ordinal


def _describe(decision: Decision | None) -> str:
    if decision is None:
        return "absent"
    bare = decision.action == "binarize" and not decision.carries
    text = f"{decision.action}{format_unit(decision.unit)}"
    return f"{text} without bypass" if bare else text
