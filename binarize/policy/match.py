"""Which rule decides a layer, and the user's overrides as rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from binarize.errors import PolicyError
from binarize.policy.loader import from_dict
from binarize.policy.schema import ACTIONS, Policy, Rule

__all__ = ["Overrides", "matches", "with_overrides"]

Overrides = Mapping[str, str] | Sequence[Mapping[str, Any] | Rule]

_PREFIXES = ("name", "role", "kind", "class")


def matches(
    rule: Rule, *, name: str, roles: frozenset[str], kinds: frozenset[str], cls: str
) -> bool:
    """Whether a rule applies to a layer.

    Args:
        rule: The rule.
        name: The layer's dotted name.
        roles: The layer's roles, keys of ``ROLES``.
        kinds: The layer's kinds, keys of ``KINDS``.
        cls: Name of the layer's class.
    """
    match = rule.match
    return (
        (not match.name or any(fnmatchcase(name, pattern) for pattern in match.name))
        and (not match.role or bool(roles.intersection(match.role)))
        and (not match.kind or bool(kinds.intersection(match.kind)))
        and (not match.cls or cls in match.cls)
    )


def with_overrides(policy: Policy, overrides: Overrides | None) -> Policy:
    """Put the user's overrides in front of a policy's rules.

    Args:
        policy: The policy.
        overrides: Either ``{selector: action}``, where a selector is a name pattern
            (``"decoder.blocks.4.*"``) or has a prefix (``"kind:depthwise"``, ``"role:tokens"``,
            ``"class:Conv2d"``), or a list of rule tables as in a rule file. The first wins.

    Returns:
        A policy with the overrides as its first rules.

    Raises:
        PolicyError: An override is malformed or names an unknown role, kind or action.
    """
    if not overrides:
        return policy
    if isinstance(overrides, Mapping):
        tables: list[Any] = [_table(selector, action) for selector, action in overrides.items()]
    elif isinstance(overrides, Sequence) and not isinstance(overrides, str):
        tables = list(overrides)
    else:
        raise PolicyError(
            "overrides",
            overrides,
            "neither a mapping nor a list of rules",
            "give for example {'decoder.*': 'keep'}",
        )
    ready = Policy("overrides", rules=tuple(t for t in tables if isinstance(t, Rule))).to_dict()
    plain = iter(ready["rules"])
    rules = [next(plain) if isinstance(table, Rule) else table for table in tables]
    data = policy.to_dict()
    try:
        return from_dict({**data, "rules": [*rules, *data["rules"]]})
    except PolicyError as error:
        raise PolicyError("overrides", overrides, error.rule, "correct these keys") from None


def _table(selector: str, action: str) -> dict[str, Any]:
    if action not in ACTIONS:
        raise PolicyError(
            "overrides", {selector: action}, "no such action", f"use {' or '.join(ACTIONS)}"
        )
    prefix, colon, rest = selector.partition(":")
    key, pattern = (prefix, rest) if colon and prefix in _PREFIXES else ("name", selector)
    return {"match": {key: pattern}, "action": action, "reason": f"override {selector!r}"}
