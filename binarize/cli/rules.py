"""``binarize rules``: list, show, copy and validate policies."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.errors import FileError, PolicyError

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
    parser = add_command(
        commands,
        "rules",
        _help,
        help="list, show, copy and validate policies",
        usage="COMMAND",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        common=False,
    )
    verbs = parser.add_subparsers(
        title="commands", metavar="COMMAND", prog=parser.prog, parser_class=type(parser)
    )
    add_command(
        verbs,
        "ls",
        _ls,
        help="list the bundled policies",
        description="List the bundled policies: name, summary, source.",
        examples=[("binarize rules ls", "as a table"), ("binarize rules ls --json", "as JSON")],
    )
    show = add_command(
        verbs,
        "show",
        _show,
        help="print a policy's file",
        usage="NAME|FILE",
        description="Print a policy's file, or with --json its resolved form.",
        examples=[
            ("binarize rules show bidense", "the file itself"),
            ("binarize rules show mine.toml --json", "with everything it inherits"),
        ],
    )
    show.add_argument("policy", metavar="NAME|FILE", help="a bundled policy or a rule file")
    copy = add_command(
        verbs,
        "cp",
        _cp,
        help="copy a policy to start your own",
        usage="NAME|FILE TARGET",
        description="Copy a policy's file; the copy is named after its new file.",
        examples=[
            ("binarize rules cp bidense mine.toml", "start your own"),
            ("binarize rules cp bidense mine.toml --force", "replace an existing file"),
        ],
    )
    copy.add_argument("policy", metavar="NAME|FILE", help="a bundled policy or a rule file")
    copy.add_argument("target", type=Path, metavar="TARGET", help="the new file, or its folder")
    copy.add_argument("--force", action="store_true", help="replace an existing file")
    check = add_command(
        verbs,
        "validate",
        _validate,
        help="report all errors in rule files",
        usage="FILE [FILE ...]",
        description="Report all errors in rule files, one line each; exit code 1 if there are any.",
        examples=[
            ("binarize rules validate mine.toml", "one file"),
            ("binarize rules validate rules/*.toml --json", "several files; the result as JSON"),
        ],
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="rule files, or bundled names")


def _help(args: argparse.Namespace, out: Output) -> int | None:
    args.parser.print_help()
    return None


def _ls(args: argparse.Namespace, out: Output) -> int | None:
    from binarize.policy import policies, policy_files

    files = policy_files()
    found = policies()
    if out.as_json:
        out.emit(
            [
                {
                    "name": name,
                    "summary": policy.summary,
                    "source": policy.source,
                    "file": files[name],
                    "rules": len(policy.rules),
                }
                for name, policy in found.items()
            ]
        )
        return None
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("policy", "summary", "source"):
        table.add_column(title, no_wrap=title == "policy")
    for name, policy in found.items():
        table.add_row(name, policy.summary, policy.source)
    out.print(table)
    out.print(f"\nfiles in {next(iter(files.values())).parent}", wrap=False)
    return None


def _show(args: argparse.Namespace, out: Output) -> int | None:
    from binarize.policy import load_policy

    if out.as_json:
        out.emit(load_policy(args.policy).to_dict())
        return None
    path = _file(args.policy)
    text = _text(path)
    console = out.console
    if console.is_terminal:
        from rich.syntax import Syntax

        console.print(Syntax(text, "toml", background_color="default", word_wrap=True))
    else:
        print(text, end="")
    return None


def _cp(args: argparse.Namespace, out: Output) -> int | None:
    path = _file(args.policy)
    target = args.target / path.name if args.target.is_dir() else args.target
    if target.suffix != ".toml":
        raise FileError("target", str(target), "a rule file ends in .toml", f"write {target}.toml")
    if target.exists() and not args.force:
        raise FileError("target", str(target), "already exists", "use --force to replace it")
    name = f'name = "{target.stem}"'
    text = re.sub(r'(?m)^name\s*=\s*".*?"', lambda _: name, _text(path), count=1)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileError(
            "target", str(target), f"cannot be written ({error.strerror})", "choose another path"
        ) from error
    out.print(f"{target}: use it with --policy {target}", wrap=False)
    out.emit({"file": target, "from": path})
    return None


def _validate(args: argparse.Namespace, out: Output) -> int | None:
    from binarize.policy import validate

    problems = {file: validate(file) for file in args.files}
    for file, found in problems.items():
        for problem in found:
            out.print(f"{file}: {problem}", wrap=False)
        if not found:
            out.print(f"{file}: good", wrap=False)
    out.emit(problems)
    return 1 if any(problems.values()) else None


def _file(policy: str) -> Path:
    from binarize.policy import load_policy, policy_files

    bundled = policy_files()
    if policy in bundled:
        return bundled[policy]
    path = Path(policy).expanduser()
    if not path.is_file():
        load_policy(policy)  # raises an error with the nearest names
    return path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(
            "policy", str(path), f"cannot be read ({error})", "give a TOML file"
        ) from error
