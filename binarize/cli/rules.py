"""``binarize rules``: list, show, copy and validate policies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from binarize.cli.parser import Subparsers
from binarize.cli.toml_files import Kind, Library, add_file_commands

__all__ = ["add"]

_DESCRIPTION = """\
A policy chooses which layers become binary and the parts of the binary unit. It is a TOML file,
and rules/README.md describes every key. Copy one, edit it, validate it, and pass it as --policy."""

_EXAMPLES = [
    ("binarize rules ls", "the bundled policies"),
    ("binarize rules show bidense", "read one"),
    ("binarize rules cp bidense mine.toml", "start your own"),
    ("binarize rules validate mine.toml", "all its errors at once"),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command and its own four."""
    kind = Kind(
        command="rules",
        noun="policy",
        nouns="policies",
        file="rule file",
        option="--policy",
        example="bidense",
        columns=("summary", "source"),
        resolved="with everything it inherits",
        library=_library,
        described=_described,
    )
    add_file_commands(commands, kind, _DESCRIPTION, _EXAMPLES)


def _library() -> Library:
    from binarize.policy import load_policy, policy_files, validate

    return Library(policy_files, load_policy, validate)


def _described(name: str, policy: Any, file: Path) -> Mapping[str, Any]:
    return {
        "name": name,
        "summary": policy.summary,
        "source": policy.source,
        "file": file,
        "rules": len(policy.rules),
    }
