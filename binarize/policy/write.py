"""Write policies as rule files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from binarize.errors import FileError
from binarize.policy.loader import policies
from binarize.policy.schema import Policy
from binarize.writing import atomic_write

__all__ = ["save_policy", "to_toml"]


def save_policy(policy: Policy, path: str | Path) -> None:
    """Write a policy to a rule file; the policy is named after the file.

    Args:
        policy: The policy.
        path: The file, ending in ``.toml``; an existing file is replaced.

    Raises:
        FileError: It cannot be written, or has another suffix.
    """
    path = Path(path)
    if path.suffix != ".toml":
        raise FileError(
            "path", str(path), "a rule file must end in .toml", "give a name such as mine.toml"
        )
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(to_toml(replace(policy, name=path.stem)), encoding="utf-8")
    except OSError as error:
        raise FileError(
            "path",
            str(path),
            f"cannot be written ({error.strerror or error})",
            "choose a writable folder",
        ) from error


def to_toml(policy: Policy, *, inherit: bool = True) -> str:
    """Return the text of a rule file.

    Args:
        policy: The policy.
        inherit: Inherit what it shares with a bundled policy; otherwise write everything.
    """
    base = _base(policy) if inherit else None
    data = policy.to_dict()
    rules = data.pop("rules")
    unit = data.pop("unit")
    lines = [f"{key} = {_value(value)}" for key, value in data.items()]
    if base is not None:
        lines = [line for line in lines if not line.startswith("replace_activations ")]
        lines.append(f"extends = {_value(base.name)}")
        rules = rules[: len(rules) - len(base.rules)]
    else:
        lines += ["", "[unit]", *(f"{key} = {_value(value)}" for key, value in unit.items())]
    for rule in rules:
        lines += ["", "[[rules]]", *(f"{k} = {_value(v)}" for k, v in rule.items() if v != {})]
    return "\n".join(lines) + "\n"


def _base(policy: Policy) -> Policy | None:
    """Return the bundled policy that differs only in its first rules, and in the fewest."""
    alike = [
        known
        for known in policies().values()
        if known.unit == policy.unit
        and known.replace_activations == policy.replace_activations
        and policy.rules[len(policy.rules) - len(known.rules) :] == known.rules
    ]
    return max(alike, key=lambda known: len(known.rules), default=None)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]" if len(value) != 1 else _value(value[0])
    # JSON and TOML write strings, numbers and booleans alike, and keys here are always bare.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
