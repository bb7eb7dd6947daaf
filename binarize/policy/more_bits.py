"""Multi-bit binarizers of a policy, for single layers of networks under another policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from binarize.errors import PolicyError
from binarize.nn.parts import BINARIZERS, WEIGHTS
from binarize.policy.loader import load_policy
from binarize.policy.schema import Policy

__all__ = ["INT8", "MoreBits", "MoreBitsRule", "more_bits_rules"]

MoreBits = str | Path | Policy | Sequence[str | Path | Policy]

INT8 = "int8"
"""Stands for the 8-bit treatment where policies are named."""


@dataclass(frozen=True)
class MoreBitsRule:
    """A rule that gives a layer more bits.

    Attributes:
        action: ``"binarize"`` or ``"int8"``.
        unit: Parts that override the binary unit, as in a rule file.
    """

    action: str = "binarize"
    unit: Mapping[str, Any] = field(default_factory=dict)

    def suits(self, action: str) -> bool:
        """Return whether it may replace a policy's action for a layer."""
        if self.action == "int8":
            return action not in ("int8", "keep")
        return action == "binarize"  # a layer removed with its addition needs no bits


def more_bits_rules(given: MoreBits) -> dict[str, MoreBitsRule]:
    """Extract the multi-bit binarizers of policies.

    Group-Net has multi-bit weights, LQ-Nets multi-bit weights and activations. The rest of a
    layer's unit (bypass, norm, a 1-bit binarizer) stays that of the network's own policy.

    Args:
        given: Names of bundled policies, paths of rule files, or policies; one or several.
            ``"int8"`` stands for 8-bit layers.

    Returns:
        What a rule says, by policy name.

    Raises:
        PolicyError: There is no such policy, or its unit is entirely 1-bit.
    """
    sources = [given] if isinstance(given, str | Path | Policy) else list(given)
    rules: dict[str, MoreBitsRule] = {}
    for source in sources:
        if source == INT8:
            rules[INT8] = MoreBitsRule("int8")
        else:
            policy = load_policy(source)
            rules[policy.name] = MoreBitsRule(unit=_more_bits(policy))
    return rules


def _more_bits(policy: Policy) -> dict[str, Any]:
    unit = policy.unit
    changes: dict[str, Any] = {}
    if BINARIZERS[unit.binarizer](1, **unit.binarizer_options).bits > 1:
        changes.update(binarizer=unit.binarizer, binarizer_options=dict(unit.binarizer_options))
    if WEIGHTS[unit.weight](**unit.weight_options).bits > 1:
        changes.update(weight=unit.weight, weight_options=dict(unit.weight_options))
    if not changes:
        raise PolicyError(
            "more_bits",
            policy.name,
            "its weights and activations have one bit each",
            "name a multi-bit policy such as 'cbnn', 'lqnet' or 'groupnet', or 'int8'",
        )
    return changes
