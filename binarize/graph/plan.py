"""A conversion as data: every decision, its rule and its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from binarize.graph.decisions import (
    ActivationDecision,
    AdditionDecision,
    Decision,
    LayerDecision,
    OperationDecision,
    ScaleDecision,
    decision_from_row,
)
from binarize.nn.spec import UnitSpec
from binarize.nn.treatments import TREATMENTS
from binarize.page import Markup, Paged
from binarize.policy.loader import from_dict
from binarize.policy.schema import Policy

__all__ = ["Plan"]

_Kind = TypeVar("_Kind", bound=Decision)


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

    @property
    def layers(self) -> tuple[LayerDecision, ...]:
        """Return the decisions about convolutions and linear layers."""
        return self._of(LayerDecision)

    @property
    def activations(self) -> tuple[ActivationDecision, ...]:
        """Return the decisions about activations."""
        return self._of(ActivationDecision)

    @property
    def additions(self) -> tuple[AdditionDecision, ...]:
        """Return the decisions about additions that close a block."""
        return self._of(AdditionDecision)

    @property
    def scales(self) -> tuple[ScaleDecision, ...]:
        """Return the decisions about factors of removed shortcuts."""
        return self._of(ScaleDecision)

    @property
    def edits(self) -> tuple[OperationDecision, ...]:
        """Return the decisions that rewrite a forward."""
        return tuple(d for d in self._of(OperationDecision) if d.rewrite)

    def part(self, part: str) -> tuple[Decision, ...]:
        """Return the decisions about one part, by name, such as "layer" or "addition"."""
        return tuple(d for d in self.decisions if d.part == part)

    def _of(self, kind: type[_Kind]) -> tuple[_Kind, ...]:
        return tuple(d for d in self.decisions if isinstance(d, kind))

    def unit(self, decision: LayerDecision) -> UnitSpec:
        """Return the unit that a layer's decision specifies."""
        return self.policy.unit.changed(decision.unit or {})

    @property
    def binary_share(self) -> float:
        """Return the share of the remaining layers' weights that become binary, 0 to 1."""
        total = sum(d.weights for d in self.layers if d.action in TREATMENTS)
        return sum(d.weights for d in self.layers if d.action == "binarize") / max(total, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; :meth:`from_dict` reads it."""
        return {
            "policy": self.policy.to_dict(),
            "decisions": [decision.to_row() for decision in self.decisions],
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
        return cls(
            from_dict(data["policy"]),
            tuple(map(decision_from_row, data["decisions"])),
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
        mine, theirs = ({d.place: d for d in plan.decisions} for plan in (self, other))
        places = list(dict.fromkeys([*mine, *theirs]))
        # An activation module that several forwards call has a decision in each.
        uses = Counter(site for _, site, _, _ in places)
        for place in places:
            _, site, scope, ordinal = place
            before, after = (
                known[place].summary if place in known else "absent" for known in (mine, theirs)
            )
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
        counts = Counter((d.part, d.action) for d in self.decisions)
        listed = ", ".join(f"{n} {part}(s) {action}" for (part, action), n in counts.items())
        at = " and ".join("×".join(map(str, shape)) for shape in self.example)
        made = f" for inputs of {at}" if at else ""
        return f"Plan by policy {self.policy.name!r}{made}: {listed}"

    def __str__(self) -> str:
        lines = [self.headline()]
        lines += [
            f"  {d.action:<9} {d.site}  [{d.kind}{_shape(d)}] {d.reason} ({d.rule})"
            for d in self.decisions
        ]
        lines += [f"  not traced {scope or '(root)'}: {why}" for scope, why in self.opaque.items()]
        lines += [f"  rule matched nothing: {rule}" for rule in self.unmatched]
        return "\n".join(lines)


def _shape(decision: Decision) -> str:
    shape = decision.shape if isinstance(decision, LayerDecision) else ()
    return str(list(shape)) if shape else ""
