"""Match rules to layers, and turn overrides into rules."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from binarize.errors import PolicyError
from binarize.policy.loader import from_dict
from binarize.policy.schema import ACTIONS, Policy, Rule

__all__ = ["Overrides", "Site", "matches", "select", "with_overrides"]

Overrides = Mapping[Any, str] | Sequence[Mapping[str, Any] | Rule]

_PREFIXES = ("name", "role", "kind", "class", "position")


@dataclass(frozen=True)
class Site:
    """The properties of a layer that rules can match.

    Attributes:
        names: The layer's dotted name, also with list indices counted from the end.
        roles: Keys of ``ROLES``.
        kinds: Keys of ``KINDS``.
        cls: Class name of the layer.
    """

    names: tuple[str, ...]
    roles: frozenset[str]
    kinds: frozenset[str]
    cls: str


def matches(rule: Rule, site: Site) -> bool:
    """Return whether a rule applies to a layer, regardless of its position.

    Args:
        rule: The rule.
        site: The layer.
    """
    match = rule.match
    return (
        (
            not match.name
            or any(fnmatchcase(name, pattern) for pattern in match.name for name in site.names)
        )
        and (not match.role or bool(site.roles.intersection(match.role)))
        and (not match.kind or bool(site.kinds.intersection(match.kind)))
        and (not match.cls or site.cls in match.cls)
    )


def select(rule: Rule, sites: Sequence[Site]) -> set[int]:
    """Return the layers of a network that a rule applies to.

    Args:
        rule: The rule.
        sites: All layers in execution order, those that do not run last.

    Returns:
        Indices into ``sites``.
    """
    found = [i for i, site in enumerate(sites) if matches(rule, site)]
    if not rule.match.position:
        return set(found)
    running = [i for i in found if not sites[i].roles & {"unused", "training"}]
    chosen: set[int] = set()
    for position in rule.match.position:
        end, _, count = position.partition(" ")
        chosen.update(running[: int(count)] if end == "first" else running[-int(count) :])
    return chosen


def with_overrides(
    policy: Policy, overrides: Overrides | None, layers: Mapping[str, Any] | None = None
) -> Policy:
    """Insert the user's overrides before a policy's rules.

    Args:
        policy: The policy.
        overrides: Either ``{selector: action}``, where a selector is a name pattern
            (``"decoder.blocks.-1.*"``) or has a prefix (``"kind:depthwise"``, ``"role:tokens"``,
            ``"class:Conv2d"``, ``"position:last 2"``), or a list of rule tables as in a rule
            file. The first wins. A selector, or a table's ``match``, may be a function of a
            layer's name and module; it is replaced by the names that it selects.
        layers: The network's convolutions and linear layers by all their names, for functions.

    Returns:
        A policy with the overrides as its first rules.

    Raises:
        PolicyError: An override is malformed, names an unknown role, kind or action, or is a
            function that fails or selects no layer.
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
    rules = [
        next(plain) if isinstance(table, Rule) else _spelled_out(table, layers or {})
        for table in tables
    ]
    data = policy.to_dict()
    try:
        return from_dict({**data, "rules": [*rules, *data["rules"]]})
    except PolicyError as error:
        raise PolicyError("overrides", overrides, error.rule, "correct these keys") from None


def _table(selector: Any, action: str) -> dict[str, Any]:
    if action not in ACTIONS:
        raise PolicyError(
            "overrides", {selector: action}, "no such action", f"use {' or '.join(ACTIONS)}"
        )
    if callable(selector):
        return {"match": selector, "action": action}
    if not isinstance(selector, str):
        raise PolicyError(
            "overrides", selector, "neither a selector nor a function", "give for example 'head.*'"
        )
    prefix, colon, rest = selector.partition(":")
    key, pattern = (prefix, rest) if colon and prefix in _PREFIXES else ("name", selector)
    return {"match": {key: pattern}, "action": action, "reason": f"override {selector!r}"}


def _spelled_out(table: Any, layers: Mapping[str, Any]) -> Any:
    """Replace a rule's function by the names that it selects, so that a plan is data."""
    chooses = table.get("match") if isinstance(table, Mapping) else None
    if not callable(chooses):
        return table
    called = getattr(chooses, "__name__", type(chooses).__name__)
    try:
        chosen = {id(layer) for name, layer in layers.items() if chooses(name, layer)}
    except Exception as error:
        raise PolicyError(
            "overrides",
            called,
            f"this function failed ({type(error).__name__}: {error})",
            "write a function of a layer's name and module that returns True or False",
        ) from error
    names = [glob.escape(name) for name, layer in layers.items() if id(layer) in chosen]
    if not names:
        some = ", ".join(list(layers)[:4])
        raise PolicyError(
            "overrides",
            called,
            "this function matched no layer",
            f"correct it; the layers are {some}, ...",
        )
    return {"reason": f"override {called}", **table, "match": {"name": names}}
