"""``binarize recipes``: list, show, copy and validate training recipes."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.errors import FileError

__all__ = ["add"]

_DESCRIPTION = """\
A recipe holds training settings: learning rate, epochs, class weights, distillation. It is a TOML
file. Copy one, edit it, validate it, and pass it as --recipe. Options of binarize train override
it."""

_EXAMPLES = [
    ("binarize recipes ls", "the bundled recipes, with their results"),
    ("binarize recipes show cnn-dense", "read one"),
    ("binarize recipes cp cnn-dense mine.toml", "start your own"),
    ("binarize recipes validate mine.toml", "all its errors at once"),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command and its own four."""
    parser = add_command(
        commands,
        "recipes",
        _help,
        help="list, show, copy and validate training recipes",
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
        help="list the bundled recipes",
        description="List the bundled recipes: name, purpose, result.",
        examples=[("binarize recipes ls", "as a table"), ("binarize recipes ls --json", "as JSON")],
    )
    show = add_command(
        verbs,
        "show",
        _show,
        help="print a recipe's file",
        usage="NAME|FILE",
        description="Print a recipe's file, or with --json its resolved form.",
        examples=[
            ("binarize recipes show cnn-dense", "the file itself"),
            ("binarize recipes show mine.toml --json", "with all defaults filled in"),
        ],
    )
    show.add_argument("recipe", metavar="NAME|FILE", help="a bundled recipe or a file")
    copy = add_command(
        verbs,
        "cp",
        _cp,
        help="copy a recipe to start your own",
        usage="NAME|FILE TARGET",
        description="Copy a recipe's file; the copy is named after its new file.",
        examples=[
            ("binarize recipes cp cnn-dense mine.toml", "start your own"),
            ("binarize recipes cp cnn-dense mine.toml --force", "replace an existing file"),
        ],
    )
    copy.add_argument("recipe", metavar="NAME|FILE", help="a bundled recipe or a file")
    copy.add_argument("target", type=Path, metavar="TARGET", help="the new file, or its folder")
    copy.add_argument("--force", action="store_true", help="replace an existing file")
    check = add_command(
        verbs,
        "validate",
        _validate,
        help="report all errors in recipes",
        usage="FILE [FILE ...]",
        description="Report all errors in recipes, one line each; exit code 1 if there are any.",
        examples=[("binarize recipes validate mine.toml", "one file")],
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="files, or bundled names")


def _help(args: argparse.Namespace, out: Output) -> int | None:
    args.parser.print_help()
    return None


def _ls(args: argparse.Namespace, out: Output) -> int | None:
    from binarize.train.recipes import load_recipe, recipe_files

    files = recipe_files()
    found = {name: load_recipe(name) for name in files}
    if out.as_json:
        out.emit([{**recipe.to_dict(), "file": files[name]} for name, recipe in found.items()])
        return None
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("recipe", "purpose", "result"):
        table.add_column(title, no_wrap=title == "recipe")
    for name, recipe in found.items():
        table.add_row(name, recipe.purpose, recipe.result)
    out.print(table)
    return None


def _show(args: argparse.Namespace, out: Output) -> int | None:
    from binarize.train.recipes import load_recipe

    recipe = load_recipe(args.recipe)
    if out.as_json:
        out.emit(recipe.to_dict())
    else:
        print(_file(args.recipe).read_text(encoding="utf-8"), end="")
    return None


def _cp(args: argparse.Namespace, out: Output) -> int | None:
    path = _file(args.recipe)
    target = args.target / path.name if args.target.is_dir() else args.target
    if target.suffix != ".toml":
        raise FileError("target", str(target), "a recipe ends in .toml", f"write {target}.toml")
    if target.exists() and not args.force:
        raise FileError("target", str(target), "already exists", "use --force to replace it")
    name = f'name = "{target.stem}"'
    text = path.read_text(encoding="utf-8")
    text = re.sub(r'(?m)^name\s*=\s*".*?"', lambda _: name, text, count=1)
    target.write_text(text, encoding="utf-8")
    out.print(f"{target}: use it with --recipe {target}", wrap=False)
    out.emit({"file": target, "from": path})
    return None


def _validate(args: argparse.Namespace, out: Output) -> int | None:
    from binarize.train.recipes import validate_recipe

    problems = {file: validate_recipe(file) for file in args.files}
    for file, found in problems.items():
        for problem in found:
            out.print(f"{file}: {problem}", wrap=False)
        if not found:
            out.print(f"{file}: good", wrap=False)
    out.emit(problems)
    return 1 if any(problems.values()) else None


def _file(recipe: str) -> Path:
    from binarize.train.recipes import load_recipe, recipe_files

    bundled = recipe_files()
    if recipe not in bundled:
        load_recipe(recipe)  # raises an error with the nearest names
    return bundled.get(recipe, Path(recipe).expanduser())
