"""``ls``, ``show``, ``cp`` and ``validate`` for bundled TOML files and one's own."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.errors import FileError

__all__ = ["Kind", "Library", "add_file_commands"]


@dataclass(frozen=True)
class Library:
    """The functions that know a kind of file.

    Attributes:
        files: Returns the bundled files by name.
        load: Reads a bundled name or a file; the result has ``to_dict``.
        validate: Returns all errors of a bundled name or a file.
    """

    files: Callable[[], Mapping[str, Path]]
    load: Callable[[str], Any]
    validate: Callable[[str], Sequence[str]]


@dataclass(frozen=True)
class Kind:
    """A kind of file and its words.

    Attributes:
        command: The command, such as ``rules``.
        noun: What a file holds, and the argument's name.
        nouns: Its plural.
        file: What a file is called.
        option: The option that takes one.
        example: A bundled name.
        columns: Attributes that ``ls`` shows beside the name.
        resolved: What ``show --json`` adds.
        library: Imports and returns the functions.
        described: What ``ls --json`` tells of one, given its name, the object and its file.
    """

    command: str
    noun: str
    nouns: str
    file: str
    option: str
    example: str
    columns: tuple[str, ...]
    resolved: str
    library: Callable[[], Library]
    described: Callable[[str, Any, Path], Mapping[str, Any]]


def add_file_commands(
    commands: Subparsers, kind: Kind, description: str, examples: Sequence[tuple[str, str]]
) -> None:
    """Add the command and its own four.

    Args:
        commands: Result of ``add_subparsers``.
        kind: The kind of file.
        description: Of the command.
        examples: Of the command, as in :func:`~binarize.cli.parser.add_command`.
    """
    call, noun, either = f"binarize {kind.command}", kind.noun, f"a bundled {kind.noun} or a file"
    parser = add_command(
        commands,
        kind.command,
        _help,
        help=f"list, show, copy and validate {kind.nouns}",
        usage="COMMAND",
        description=description,
        examples=examples,
        common=False,
    )
    verbs = parser.add_subparsers(
        title="commands", metavar="COMMAND", prog=parser.prog, parser_class=type(parser)
    )
    add_command(
        verbs,
        "ls",
        _ls,
        help=f"list the bundled {kind.nouns}",
        description=f"List the bundled {kind.nouns}: name, {', '.join(kind.columns)}.",
        examples=[(f"{call} ls", "as a table"), (f"{call} ls --json", "as JSON")],
    ).set_defaults(kind=kind)
    show = add_command(
        verbs,
        "show",
        _show,
        help=f"print a {noun}'s file",
        usage="NAME|FILE",
        description=f"Print a {noun}'s file, or with --json its resolved form.",
        examples=[
            (f"{call} show {kind.example}", "the file itself"),
            (f"{call} show mine.toml --json", kind.resolved),
        ],
    )
    show.add_argument(noun, metavar="NAME|FILE", help=either)
    show.set_defaults(kind=kind)
    copy = add_command(
        verbs,
        "cp",
        _cp,
        help=f"copy a {noun} to start your own",
        usage="NAME|FILE TARGET",
        description=f"Copy a {noun}'s file; the copy is named after its new file.",
        examples=[
            (f"{call} cp {kind.example} mine.toml", "start your own"),
            (f"{call} cp {kind.example} mine.toml --force", "replace an existing file"),
        ],
    )
    copy.add_argument(noun, metavar="NAME|FILE", help=either)
    copy.add_argument("target", type=Path, metavar="TARGET", help="the new file, or its folder")
    copy.add_argument("--force", action="store_true", help="replace an existing file")
    copy.set_defaults(kind=kind)
    check = add_command(
        verbs,
        "validate",
        _validate,
        help=f"report all errors in {kind.file}s",
        usage="FILE [FILE ...]",
        description=f"Report all errors in {kind.file}s, one line each; exit code 1 if there are "
        "any.",
        examples=[
            (f"{call} validate mine.toml", "one file"),
            (f"{call} validate *.toml --json", "several files; the result as JSON"),
        ],
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="files, or bundled names")
    check.set_defaults(kind=kind)


def _help(args: argparse.Namespace, out: Output) -> int | None:
    args.parser.print_help()
    return None


def _ls(args: argparse.Namespace, out: Output) -> int | None:
    kind: Kind = args.kind
    library = kind.library()
    files = library.files()
    found = {name: library.load(name) for name in files}
    if out.as_json:
        out.emit([kind.described(name, made, files[name]) for name, made in found.items()])
        return None
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in (kind.noun, *kind.columns):
        table.add_column(title, no_wrap=title == kind.noun)
    for name, made in found.items():
        table.add_row(name, *(getattr(made, column) for column in kind.columns))
    out.print(table)
    out.print(f"\nfiles in {next(iter(files.values())).parent}", wrap=False)
    return None


def _show(args: argparse.Namespace, out: Output) -> int | None:
    kind: Kind = args.kind
    given = getattr(args, kind.noun)
    if out.as_json:
        out.emit(kind.library().load(given).to_dict())
        return None
    text = _text(kind, _file(kind, given))
    console = out.console
    if console.is_terminal:
        from rich.syntax import Syntax

        console.print(Syntax(text, "toml", background_color="default", word_wrap=True))
    else:
        print(text, end="")
    return None


def _cp(args: argparse.Namespace, out: Output) -> int | None:
    kind: Kind = args.kind
    path = _file(kind, getattr(args, kind.noun))
    target = args.target / path.name if args.target.is_dir() else args.target
    if target.suffix != ".toml":
        raise FileError(
            "target", str(target), f"a {kind.file} ends in .toml", f"write {target}.toml"
        )
    if target.exists() and not args.force:
        raise FileError("target", str(target), "already exists", "use --force to replace it")
    name = f'name = "{target.stem}"'
    text = re.sub(r'(?m)^name\s*=\s*".*?"', lambda _: name, _text(kind, path), count=1)
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileError(
            "target", str(target), f"cannot be written ({error.strerror})", "choose another path"
        ) from error
    out.print(f"{target}: use it with {kind.option} {target}", wrap=False)
    out.emit({"file": target, "from": path})
    return None


def _validate(args: argparse.Namespace, out: Output) -> int | None:
    validate = args.kind.library().validate
    problems = {file: validate(file) for file in args.files}
    for file, found in problems.items():
        for problem in found:
            out.print(f"{file}: {problem}", wrap=False)
        if not found:
            out.print(f"{file}: good", wrap=False)
    out.emit(problems)
    return 1 if any(problems.values()) else None


def _file(kind: Kind, given: str) -> Path:
    library = kind.library()
    bundled = library.files()
    if given in bundled:
        return bundled[given]
    path = Path(given).expanduser()
    if not path.is_file():
        library.load(given)  # raises an error with the nearest names
    return path


def _text(kind: Kind, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            kind.noun, str(path), f"cannot be read ({error})", "give a TOML file"
        ) from error
