"""Multi-bit binarizers of a policy, for single layers of networks under another policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from binarize.errors import PolicyError
from binarize.nn.parts import BINARIZERS, WEIGHTS
from binarize.policy.loader import load_policy
from binarize.policy.schema import Policy

__all__ = ["MoreBits", "more_bits_units"]

MoreBits = str | Path | Policy | Sequence[str | Path | Policy]


def more_bits_units(given: MoreBits) -> dict[str, dict[str, Any]]:
    """Extract the multi-bit binarizers of policies.

    Group-Net has multi-bit weights, LQ-Nets multi-bit weights and activations. The rest of a
    layer's unit (bypass, norm, a 1-bit binarizer) stays that of the network's own policy.

    Args:
        given: Names of bundled policies, paths of rule files, or policies; one or several.

    Returns:
        A rule's ``unit`` table by policy name.

    Raises:
        PolicyError: There is no such policy, or its unit is entirely 1-bit.
    """
    sources = [given] if isinstance(given, str | Path | Policy) else list(given)
    policies = [load_policy(source) for source in sources]
    return {policy.name: _more_bits(policy) for policy in policies}


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
            "name a multi-bit policy such as 'cbnn', 'lqnet' or 'groupnet'",
        )
    return changes
