"""A policy as data: the unit's parts and an ordered list of rules."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from binarize.nn.spec import UnitSpec
from binarize.nn.treatments import TREATMENTS

__all__ = ["ACTIONS", "KINDS", "ROLES", "Match", "Policy", "Rule", "told_unit"]

ACTIONS = tuple(TREATMENTS)

ROLES = {
    "input": "reads the network's input, no other layer comes before it",
    "prediction": "makes an output of the network, whatever harmless follows it",
    "coordinates": "makes offsets, masks or a grid by which a map is sampled",
    "zero": "starts with zeros alone, so that it changes nothing at first",
    "vector": "works on a map of one position",
    "gate": "a vector layer whose result gates a map, as in squeeze-excite",
    "tokens": "linear layer over tokens, such as those of a transformer",
    "attention": "feeds a product of two computed maps, or takes its result",
    "shortcut": "projects the shortcut of a residual block",
    "finest": "works behind the last upsampling, at the output's scale or near it",
    "constant": "works on constants of the network alone, such as a table of positions",
    "training": "is called in training mode only, as an auxiliary head",
    "unused": "is not called by the forward pass",
}

KINDS = {
    "conv": "any convolution that is not transposed",
    "transposed": "transposed convolution",
    "linear": "linear layer",
    "depthwise": "convolution with as many groups as input channels",
    "grouped": "convolution with more than one group, not depthwise",
    "strided": "convolution that makes the map smaller, by a stride above 1",
    "pointwise": "convolution with a kernel of one position",
}


@dataclass(frozen=True)
class Match:
    """What a rule looks at; every key that is given must hold, one of its values is enough.

    Attributes:
        name: Patterns for the layer's dotted name, as in ``fnmatch`` (``*`` also crosses dots). A
            negative number counts the entries of a list of modules from its end.
        role: Keys of ``ROLES``.
        kind: Keys of ``KINDS``.
        cls: Names of the float layer's class (``class`` in a rule file).
        position: ``"first 2"`` or ``"last 2"``: of the layers that all other keys match, in the
            order in which they run.
    """

    name: tuple[str, ...] = ()
    role: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    cls: tuple[str, ...] = ()
    position: tuple[str, ...] = ()

    @property
    def is_specific(self) -> bool:
        """Whether the rule names layers of one network, so that matching nothing is a mistake."""
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
        match: Decides whether the rule applies.
        action: One of ``ACTIONS``.
        reason: Why.
        unit: Parts of the binary unit that are others for these layers, as in a rule file:
            exchanged in the policy's unit by :meth:`binarize.nn.UnitSpec.changed`.
    """

    match: Match
    action: str
    reason: str
    unit: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.match} -> {self.action}{told_unit(self.unit)}"


def told_unit(unit: Mapping[str, Any] | None) -> str:
    """What is other in a layer's unit, in words that follow an action; nothing if nothing is."""
    words = [
        ", ".join(f"{option}={chosen!r}" for option, chosen in value.items())
        if isinstance(value, Mapping)
        else f"{key}={value!r}"
        for key, value in (unit or {}).items()
    ]
    told = ", ".join(word for word in words if word)
    return f" with {told}" if told else ""


@dataclass(frozen=True)
class Policy:
    """How a network is made binary.

    Attributes:
        name: Short name, as in ``convert(model, policy=name)``.
        summary: One line for lists.
        source: Where the method comes from.
        unit: Parts of the binary unit.
        rules: Tried in order; the first that matches a layer decides.
        replace_activations: Which ReLU-like activations after a unit become the unit's:
            ``"all"``, ``"all-but-head"`` (the one before the prediction stays), ``"around"`` (all,
            and those between a float layer and a binary one) or ``"none"``.
    """

    name: str
    summary: str = ""
    source: str = ""
    unit: UnitSpec = field(default_factory=UnitSpec)
    rules: tuple[Rule, ...] = ()
    replace_activations: str = "all"

    def save(self, path: str | Path) -> None:
        """Write a rule file, to read, to edit, and to convert by.

        What a bundled policy has, too, is inherited from it. The policy in the file has the file's
        name.

        Args:
            path: Where to, a name that ends in ``.toml``; a file that is there is replaced.

        Raises:
            FileError: It cannot be written, or has another ending.
        """
        from binarize.policy.write import save_policy

        save_policy(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in a rule file; :func:`binarize.policy.loader.from_dict` reads it."""
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
