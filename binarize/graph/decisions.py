"""One record for each kind of place that a conversion decides about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from math import prod
from typing import Any, ClassVar

from binarize.policy.schema import format_unit

__all__ = [
    "CONTRACT",
    "ActivationDecision",
    "AdditionDecision",
    "Decision",
    "LayerDecision",
    "OperationDecision",
    "ScaleDecision",
    "decision_from_row",
]

# The rule of decisions that the converter makes rather than the policy.
CONTRACT = "contract"


@dataclass(frozen=True)
class Decision:
    """What happens to one place of the network, and why.

    Attributes:
        site: Dotted name of the layer or activation, or ``scope:operation#n`` for the n-th such
            operation in a module's own forward.
        kind: Class of the module or name of the function.
        action: What is done; each kind of place has its own actions.
        reason: Why, in words.
        rule: The rule that decided; ``"contract"`` is the converter itself.
    """

    part: ClassVar[str]

    site: str
    kind: str
    action: str
    reason: str
    rule: str

    @property
    def place(self) -> tuple[str, str, str, int]:
        """The part, site, scope and ordinal, which no other decision of a plan has together."""
        return self.part, self.site, "", 0

    @property
    def summary(self) -> str:
        """The action, with what changes its result."""
        return self.action

    def to_row(self) -> dict[str, Any]:
        """Return plain data for JSON, without defaults; :func:`decision_from_row` reads it."""
        row = {"site": self.site, "part": self.part}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:
                row[field.name] = value
        return row


@dataclass(frozen=True)
class LayerDecision(Decision):
    """What happens to a convolution or linear layer.

    The actions: ``"binarize"``, ``"keep"``, ``"int8"``, ``"bypass"`` (a projection shortcut becomes
    the parameter-free bypass) and ``"remove"`` (a projection whose block addition is removed).

    Attributes:
        shape: Shape of the weight.
        norm: Name of the norm that moves into the layer, or is removed with it.
        carries: Whether the layer has the full-precision bypass if it is binary.
        like: Removed layers: a remaining layer whose output has as many positions at any input
            size, for counting the removed operations; ``None`` if there is none.
        roles: What the layer does in this network, keys of ``binarize.policy.schema.ROLES``, in
            alphabetical order.
        unit: Overrides of the policy's unit, see :meth:`binarize.graph.Plan.unit`; ``None`` if
            there are none.
    """

    part = "layer"

    shape: tuple[int, ...] = ()
    norm: str | None = None
    carries: bool = True
    like: str | None = None
    roles: tuple[str, ...] = ()
    unit: Mapping[str, Any] | None = None

    @property
    def weights(self) -> int:
        """The number of weights."""
        return prod(self.shape) if self.shape else 0

    @property
    def summary(self) -> str:
        """The action, with its unit and a bypass that is missing."""
        text = f"{self.action}{format_unit(self.unit)}"
        return f"{text} without bypass" if self.action == "binarize" and not self.carries else text


@dataclass(frozen=True)
class OperationDecision(Decision):
    """What happens to an operation that a forward calls.

    Attributes:
        scope: Name of the module whose forward calls it.
        ordinal: Position among the scope's operations of this kind.
        rewrite: Whether the scope's forward is rewritten.
    """

    scope: str = ""
    ordinal: int = 0
    rewrite: bool = False

    @property
    def place(self) -> tuple[str, str, str, int]:
        """The part, site, scope and ordinal."""
        return self.part, self.site, self.scope, self.ordinal


@dataclass(frozen=True)
class ActivationDecision(OperationDecision):
    """What happens to an activation: ``"replace"`` or ``"keep"``.

    Attributes:
        channels: Number of channels of one that is replaced.
        channel_dim: Their dimension: 1, or -1 for channels-last tensors.
    """

    part = "activation"

    channels: int = 0
    channel_dim: int = 1


@dataclass(frozen=True)
class AdditionDecision(OperationDecision):
    """What happens to the addition of a block's shortcut: ``"drop"`` or ``"keep"``.

    Attributes:
        operand: Position of the operand that stays.
    """

    part = "addition"

    operand: int = 0


@dataclass(frozen=True)
class ScaleDecision(OperationDecision):
    """What happens to a factor that scaled a shortcut or its branch: ``"drop"``."""

    part = "scale"


_KINDS = {
    kind.part: kind for kind in (LayerDecision, ActivationDecision, AdditionDecision, ScaleDecision)
}


def decision_from_row(row: Mapping[str, Any]) -> Decision:
    """Read what :meth:`Decision.to_row` wrote.

    Args:
        row: Plain data.
    """
    values = {key: value for key, value in row.items() if key != "part"}
    for key in ("shape", "roles"):
        if key in values:
            values[key] = tuple(values[key])
    return _KINDS[row["part"]](**values)
