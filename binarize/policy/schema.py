"""A policy as data: the parts of the binary unit, and an ordered list of rules."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from binarize.nn.spec import UnitSpec
from binarize.nn.treatments import TREATMENTS

__all__ = ["ACTIONS", "KINDS", "ROLES", "Match", "Policy", "Rule", "format_unit"]

ACTIONS = tuple(TREATMENTS)

ROLES = {
    "input": "reads the network's input; no other layer comes before it",
    "prediction": "produces an output of the network, possibly through harmless operations",
    "coordinates": "produces offsets, masks or a grid that sample a feature map",
    "zero": "has an all-zero weight and bias, so that it has no effect at first",
    "vector": "works on a 1x1 feature map, as after global pooling",
    "gate": "a vector layer whose result gates a feature map, as in squeeze-excite",
    "tokens": "linear layer over tokens, as in a transformer",
    "attention": "feeds a product of two computed tensors or reads its result",
    "shortcut": "projects the shortcut of a residual block",
    "finest": "comes after the last upsampling, at or near the output's resolution",
    "constant": "reads only constants of the network, such as a position table",
    "training": "runs in training mode only, like an auxiliary head",
    "unused": "is not called by the forward pass",
}

KINDS = {
    "conv": "any convolution that is not transposed",
    "transposed": "transposed convolution",
    "linear": "linear layer",
    "depthwise": "convolution with as many groups as input channels",
    "grouped": "convolution with more than one group, not depthwise",
    "strided": "convolution that downsamples by a stride above 1",
    "pointwise": "convolution with a kernel of size 1",
}


@dataclass(frozen=True)
class Match:
    """Conditions of a rule; every given key must hold, by any of its values.

    Attributes:
        name: Patterns for the layer's dotted name, as in ``fnmatch`` (``*`` also matches dots). A
            negative number counts the entries of a module list from its end.
        role: Keys of ``ROLES``.
        kind: Keys of ``KINDS``.
        cls: Names of the float layer's class (``class`` in a rule file).
        position: ``"first 2"`` or ``"last 2"``: of the layers that all other keys match, in
            execution order.
    """

    name: tuple[str, ...] = ()
    role: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    cls: tuple[str, ...] = ()
    position: tuple[str, ...] = ()

    @property
    def is_specific(self) -> bool:
        """Return whether the rule names specific layers, so that matching none is an error."""
        return bool(self.name or self.cls)

    def __str__(self) -> str:
        given = [
            f"{'class' if key == 'cls' else key}={_few(values)}"
            for key, values in asdict(self).items()
            if values
        ]
        return " and ".join(given) or "any layer"


def _few(values: tuple[str, ...]) -> str:
    if len(values) > 5:
        values = (*values[:4], f"{len(values) - 4} more")
    return "|".join(values)


@dataclass(frozen=True)
class Rule:
    """What happens to some layers, and why.

    Attributes:
        match: When the rule applies.
        action: One of ``ACTIONS``.
        reason: Why.
        unit: Parts that override the policy's unit for these layers, as in a rule file; applied
            by :meth:`binarize.nn.UnitSpec.changed`.
    """

    match: Match
    action: str
    reason: str
    unit: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.match} -> {self.action}{format_unit(self.unit)}"


def format_unit(unit: Mapping[str, Any] | None) -> str:
    """Describe a layer's unit overrides as a suffix of an action; empty without any."""
    words = [
        ", ".join(f"{option}={chosen!r}" for option, chosen in value.items())
        if isinstance(value, Mapping)
        else f"{key}={value!r}"
        for key, value in (unit or {}).items()
    ]
    changes = ", ".join(word for word in words if word)
    return f" with {changes}" if changes else ""


@dataclass(frozen=True)
class Policy:
    """Which layers of a network become binary, and how.

    Attributes:
        name: Short name, as in ``convert(model, policy=name)``.
        summary: One line for lists.
        source: Origin of the method.
        unit: Parts of the binary unit.
        rules: Tried in order; the first that matches a layer decides.
        replace_activations: Which ReLU-like activations after a unit become the unit's own:
            ``"all"``, ``"all-but-head"`` (the one before the prediction stays), ``"around"`` (all,
            plus those between a float layer and a binary one) or ``"none"``.
    """

    name: str
    summary: str = ""
    source: str = ""
    unit: UnitSpec = field(default_factory=UnitSpec)
    rules: tuple[Rule, ...] = ()
    replace_activations: str = "all"

    def save(self, path: str | Path) -> None:
        """Write a rule file that can be read, edited and used for conversion.

        It inherits what it shares with a bundled policy. The policy in the file is named after the
        file.

        Args:
            path: The file, ending in ``.toml``; an existing file is replaced.

        Raises:
            FileError: It cannot be written, or has another suffix.
        """
        from binarize.policy.write import save_policy

        save_policy(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data as in a rule file, for :func:`binarize.policy.loader.from_dict`."""
        rules: list[dict[str, Any]] = []
        for rule in self.rules:
            match = {
                "class" if key == "cls" else key: list(values)
                for key, values in asdict(rule.match).items()
                if values
            }
            unit = {"unit": deepcopy(dict(rule.unit))} if rule.unit else {}
            rules.append({"match": match, "action": rule.action, **unit, "reason": rule.reason})
        return {
            "name": self.name,
            "summary": self.summary,
            "source": self.source,
            "replace_activations": self.replace_activations,
            "unit": self.unit.to_dict(),
            "rules": rules,
        }
