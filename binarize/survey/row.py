"""The survey's result for one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from binarize.graph.decisions import LayerDecision
from binarize.graph.plan import Plan

__all__ = ["CONVERTED", "FAILED", "NOTHING", "ORIGINAL", "Row", "enter_plan"]

CONVERTED = "converted"
NOTHING = "nothing to binarize"
ORIGINAL = "original fails"
FAILED = "failed"


_ALWAYS = ("key", "library", "family", "name", "status")


@dataclass
class Row:
    """One network's row.

    Attributes:
        key: The case's name in the survey.
        library: The network's library.
        family: Its group.
        name: The network's name.
        variant: As in :class:`binarize.survey.Case`.
        status: ``CONVERTED``, ``NOTHING`` (an error reported that the policy binarizes no layer),
            ``ORIGINAL`` (the library itself cannot build or run the network) or ``FAILED``.
        cause: Why it is not converted.
        params: Parameters of the float network.
        gone: Weights of projection shortcuts that the conversion replaces by bypasses.
        binary: Weights that become binary.
        dense: Weights of convolutions and pointwise linear layers, without those in ``gone``.
        dense_binary: How many of these become binary.
        single: How many of ``dense`` work on 1x1 feature maps (squeeze-excite and the like).
        kept: Layers left in float: ``{"roles", "reason", "layers", "weights", "dense"}`` each.
        rewritten: Forwards that were traced and rewritten.
        opaque: Causes by path of the forwards that could not be rewritten.
        size: Height and width (and depth) of the examination.
        other_size: The second size, odd if the original accepts an odd one; empty if it accepts
            only one size.
        checks: ``"ok"`` or the cause of a failure, by name of the check: ``forward`` (shapes of the
            outputs), ``train`` (the same when training, at the second size, and a gradient for
            every binary parameter), ``reload`` (the plan read from JSON and applied to a fresh
            network gives the same tensors), ``real`` (with values: finite gradients, and the same
            outputs after save and load).
        effective_params: Effective parameters after conversion.
        ops: Effective operations after conversion, ``None`` if unknown.
        reference_ops: Multiply-accumulates of the float network, ``None`` if unknown.
        light: Whether only the check ``forward`` was made.
        seconds: Duration of the examination.
    """

    key: str
    library: str
    family: str
    name: str
    variant: str = ""
    status: str = FAILED
    cause: str = ""
    params: int = 0
    gone: int = 0
    binary: int = 0
    dense: int = 0
    dense_binary: int = 0
    single: int = 0
    kept: list[dict[str, Any]] = field(default_factory=list)
    rewritten: int = 0
    opaque: dict[str, str] = field(default_factory=dict)
    size: list[int] = field(default_factory=list)
    other_size: list[int] = field(default_factory=list)
    checks: dict[str, str] = field(default_factory=dict)
    effective_params: float | None = None
    ops: float | None = None
    reference_ops: int | None = None
    light: bool = False
    seconds: float = 0.0

    @property
    def convolutional(self) -> bool:
        """Whether more than half of its weights are in convolutions or pointwise linear layers."""
        return self.dense > (self.params - self.gone) / 2

    @property
    def share(self) -> float:
        """Binary fraction of the remaining parameters."""
        return self.binary / max(self.params - self.gone, 1)

    @property
    def dense_share(self) -> float:
        """Binary fraction of the weights of convolutions and pointwise linear layers."""
        return self.dense_binary / max(self.dense, 1)

    @property
    def map_share(self) -> float:
        """The same for layers that work on feature maps larger than 1x1."""
        return self.dense_binary / max(self.dense - self.single, 1)

    @property
    def failures(self) -> dict[str, str]:
        """Causes of failures, by name of the check."""
        found = {name: result for name, result in self.checks.items() if result != "ok"}
        if self.status == FAILED:
            found["convert"] = self.cause
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain data without empty values."""
        default = Row(self.key, self.library, self.family, self.name)
        given = asdict(self).items()
        return {k: v for k, v in given if v != getattr(default, k) or k in _ALWAYS}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """Read what :meth:`to_dict` wrote."""
        return cls(**data)


def enter_plan(row: Row, plan: Plan) -> None:
    """Fill in a row's numbers from a plan.

    Args:
        row: The row.
        plan: The network's plan.
    """
    row.params = plan.reference["params"]
    row.rewritten = len({edit.scope for edit in plan.edits})
    row.opaque = dict(plan.opaque)
    kept: dict[tuple[tuple[str, ...], str], dict[str, Any]] = {}
    for layer in plan.layers:
        if layer.action in ("remove", "bypass"):
            row.gone += layer.weights
            continue
        dense = layer.weights if _is_dense(layer) else 0
        row.dense += dense
        if "vector" in layer.roles:
            row.single += dense
        if layer.action == "binarize":
            row.binary += layer.weights
            row.dense_binary += dense
            continue
        group = kept.setdefault(
            (layer.roles, layer.reason),
            {
                "roles": list(layer.roles),
                "reason": layer.reason,
                "layers": 0,
                "weights": 0,
                "dense": 0,
            },
        )
        group["layers"] += 1
        group["weights"] += layer.weights
        group["dense"] += dense
    row.kept = sorted(kept.values(), key=lambda group: -group["weights"])


def _is_dense(layer: LayerDecision) -> bool:
    """Return whether a layer is a convolution or a pointwise linear layer."""
    if len(layer.shape) > 2:
        return True
    return not {"tokens", "attention", "vector", "unused"}.intersection(layer.roles)
