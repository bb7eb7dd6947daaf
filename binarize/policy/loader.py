"""Find, read, inherit and validate rule files."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import Any

from binarize.errors import BinarizeError, PolicyError
from binarize.nn.spec import UnitSpec, exchanged
from binarize.nn.treatments import TREATMENTS
from binarize.policy.schema import ACTIONS, KINDS, ROLES, Match, Policy, Rule

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["from_dict", "load_policy", "policies", "policy_files", "validate"]

_TOP = ("name", "summary", "source", "extends", "replace_activations", "unit", "rules")
_UNIT = tuple(UnitSpec.__dataclass_fields__)
_RULE = ("match", "action", "unit", "reason")
# Not per rule: an activation may follow several layers that different rules match.
_RULE_UNIT = tuple(key for key in _UNIT if not key.startswith("activation"))
_MATCH = {"name": None, "role": ROLES, "kind": KINDS, "class": None, "position": None}
_POSITION = re.compile(r"(first|last) [1-9][0-9]*")
_REPLACE = ("all", "all-but-head", "around", "none")


def policy_files() -> dict[str, Path]:
    """Return the bundled rule files by policy name, sorted."""
    # An editable install gives a traversable that is not a path, but its entries are.
    folder = resources.files("binarize") / "rules"
    if not folder.is_dir():
        folder = Path(__file__).resolve().parents[2] / "rules"
    files = [Path(str(entry)) for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def policies() -> dict[str, Policy]:
    """Return all bundled policies by name.

    Returns:
        Name to :class:`Policy`, sorted by name.
    """
    return {name: load_policy(path) for name, path in policy_files().items()}


def load_policy(source: str | Path | Policy) -> Policy:
    """Load a policy by bundled name or from a rule file; a :class:`Policy` is returned unchanged.

    Args:
        source: Name of a bundled policy, path of a TOML file, or a :class:`Policy`.

    Returns:
        The policy, ``extends`` resolved.

    Raises:
        PolicyError: No such policy or file, or the file is invalid; lists all problems.
    """
    if isinstance(source, Policy):
        return source
    if not isinstance(source, str | Path):
        raise PolicyError(
            "policy", source, "neither a name, a path nor a Policy", "give for example 'bidense'"
        )
    path = _find(source)
    policy, problems = _read(path, ())
    if problems or policy is None:
        raise PolicyError(
            "policy", str(source), "; ".join(problems), "see rules/README.md for every key"
        )
    return policy


def validate(path: str | Path) -> list[str]:
    """Check a rule file.

    Args:
        path: Path of a TOML file, or name of a bundled policy.

    Returns:
        All problems found, one line each; empty if the file is valid.

    Raises:
        PolicyError: There is no such file.
    """
    return _read(_find(path), ())[1]


def from_dict(data: Mapping[str, Any]) -> Policy:
    """Build a policy from the plain data of :meth:`Policy.to_dict`, without ``extends``.

    Raises:
        PolicyError: The data is invalid; lists all problems.
    """
    problems: list[str] = []
    policy = _build(data, problems)
    if problems or policy is None:
        raise PolicyError("policy", data.get("name"), "; ".join(problems), "correct these keys")
    return policy


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest the nearest known names, or list all."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    return "use one of " + ", ".join(names)


def _find(source: str | Path) -> Path:
    bundled = policy_files()
    if str(source) in bundled:
        return bundled[str(source)]
    path = Path(source)
    if path.is_file():
        return path
    if path.suffix == ".toml" or len(path.parts) > 1:
        raise PolicyError("policy", str(source), "no such rule file", "check the path")
    raise PolicyError("policy", str(source), "no such policy", nearest(str(source), bundled))


def _read(path: Path, seen: tuple[Path, ...]) -> tuple[Policy | None, list[str]]:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        return None, [f"{path.name} cannot be read: {error}"]
    if "extends" not in data:
        problems: list[str] = []
        return _build(data, problems), problems
    base_name = data["extends"]
    own_rules, own_unit = data.get("rules", []), data.get("unit", {})
    if not isinstance(own_rules, list) or not isinstance(own_unit, Mapping):
        return None, ["rules must be [[rules]] tables and unit a [unit] table"]
    try:
        if not isinstance(base_name, str):
            raise PolicyError(
                "extends", base_name, "not a name", "give the name or path of a policy"
            )
        base_path = _find(path.parent / base_name if base_name.endswith(".toml") else base_name)
    except PolicyError as error:
        return None, [str(error)]
    if base_path in (*seen, path):
        return None, [f"extends={base_name!r}: circular inheritance"]
    base, problems = _read(base_path, (*seen, path))
    if base is None:
        return None, problems
    merged = base.to_dict()
    unit = exchanged(merged["unit"], own_unit)
    # The file's own rules come first, so that they override the inherited ones.
    rules = [*own_rules, *merged["rules"]]
    merged.update({key: value for key, value in data.items() if key != "extends"})
    merged.update(unit=unit, rules=rules)
    return _build(merged, problems), problems


def _build(data: Mapping[str, Any], problems: list[str]) -> Policy | None:
    _unknown_keys("", data, _TOP, problems)
    if not isinstance(data.get("name"), str):
        problems.append("name: a policy needs a name")
    replace = data.get("replace_activations", "all")
    if replace not in _REPLACE:
        problems.append(f"replace_activations={replace!r}: {nearest(str(replace), _REPLACE)}")
    unit = _unit(data.get("unit", {}), problems)
    listed = data.get("rules", [])
    if not isinstance(listed, list) or not listed:
        problems.append("rules: a policy needs a list of at least one [[rules]] table")
        listed = []
    rules = [_rule(i, rule, unit, problems) for i, rule in enumerate(listed, start=1)]
    if problems or unit is None:
        return None
    return Policy(
        name=data["name"],
        summary=data.get("summary", ""),
        source=data.get("source", ""),
        unit=unit,
        rules=tuple(rule for rule in rules if rule is not None),
        replace_activations=replace,
    )


def _unit(data: Any, problems: list[str]) -> UnitSpec | None:
    if not isinstance(data, Mapping):
        problems.append(f"unit={data!r}: not a table; write its keys below [unit]")
        return None
    _unknown_keys("unit.", data, _UNIT, problems)
    try:
        return UnitSpec.from_dict({key: value for key, value in data.items() if key in _UNIT})
    except BinarizeError as error:
        problems.append(str(error))
        return None


def _rule(number: int, data: Any, unit: UnitSpec | None, problems: list[str]) -> Rule | None:
    where = f"rules[{number}]."
    before = len(problems)
    if not isinstance(data, Mapping):
        problems.append(f"rules[{number}]: a rule is a table with match, action and reason")
        return None
    _unknown_keys(where, data, _RULE, problems)
    match = data.get("match", {})
    if isinstance(match, Mapping):
        _unknown_keys(f"{where}match.", match, _MATCH, problems)
    else:
        problems.append(
            f"{where}match={match!r}: not a table; write for example {{name = 'head.*'}}"
        )
        match = {}
    values: dict[str, tuple[str, ...]] = {}
    for key, known in _MATCH.items():
        given = match.get(key, ())
        given = (given,) if isinstance(given, str) else given
        if not isinstance(given, list | tuple) or not all(isinstance(v, str) for v in given):
            problems.append(f"{where}match.{key}={given!r}: not a word or a list of words")
            given = ()
        given = tuple(given)
        for value in given:
            if known is not None and value not in known:
                problems.append(f"{where}match.{key}={value!r}: {nearest(str(value), known)}")
            if key == "position" and not _POSITION.fullmatch(value):
                problems.append(f"{where}match.{key}={value!r}: write 'first 2' or 'last 2'")
        values["cls" if key == "class" else key] = given
    action = data.get("action")
    if action not in ACTIONS:
        problems.append(f"{where}action={action!r}: {nearest(str(action), ACTIONS)}")
    changes = data.get("unit", {})
    _check_rule_unit(where, changes, action, unit, problems)
    if len(problems) > before:
        return None
    reason = str(data.get("reason") or "chosen by a rule")
    return Rule(Match(**values), str(action), reason, deepcopy(dict(changes)))


def _check_rule_unit(
    where: str, changes: Any, action: Any, unit: UnitSpec | None, problems: list[str]
) -> None:
    if not isinstance(changes, Mapping):
        problems.append(
            f"{where}unit={changes!r}: not a table; write for example {{weight = 'binary-bases'}}"
        )
        return
    if not changes:
        return
    if action in TREATMENTS and not TREATMENTS[action].takes_unit:
        made = "kept" if action == "keep" else TREATMENTS[action].title
        problems.append(f"{where}unit: a layer that is {made} has no unit; remove it")
    shared = [key for key in changes if key in _UNIT and key not in _RULE_UNIT]
    for key in shared:
        problems.append(
            f"{where}unit.{key}: an activation may follow several layers; set it in [unit], for all"
        )
    others = [key for key in changes if key not in shared]
    _unknown_keys(f"{where}unit.", dict.fromkeys(others), _RULE_UNIT, problems)
    if unit is None or not set(changes) <= set(_RULE_UNIT):
        return
    try:
        unit.changed(changes)
    except BinarizeError as error:
        problems.append(f"{where}{error}")


def _unknown_keys(
    where: str, data: Mapping[str, Any], known: Iterable[str], problems: list[str]
) -> None:
    for key in data:
        if key not in known:
            problems.append(f"{where}{key}: unknown key, {nearest(key, known)}")
