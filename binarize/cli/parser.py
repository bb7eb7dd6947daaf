"""Argument parsing with one-line errors and examples."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

__all__ = [
    "HelpFormatter",
    "Parser",
    "Subparsers",
    "add_command",
    "add_common",
    "extent",
    "numbers",
    "pair",
    "size",
    "size_or_original",
]

_COMMON = "output"

Subparsers = Any  # argparse names the type of add_subparsers() privately


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps paragraphs to the terminal's width, and leaves examples unchanged."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("examples:"):
            return super()._fill_text(text, width, indent)
        parts = (" ".join(part.split()) for part in text.split("\n\n"))
        return "\n\n".join(textwrap.fill(part, width) for part in parts)


class Parser(argparse.ArgumentParser):
    """A parser whose usage errors are one line, with the nearest name and the help command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def format_help(self) -> str:
        """Return the help text, with the common options at the end."""
        self._action_groups.sort(key=lambda group: group.title == _COMMON)
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        found = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if found is not None:
            names = [name.strip(" '\"") for name in found[2].split(",")]
            near = difflib.get_close_matches(found[1], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(names)}"
            argument = message.partition(":")[0].removeprefix("argument ")
            message = f"{argument}: unknown {found[1]!r}; {hint}"
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown.split()[0].partition("=")[0], known, n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        sys.stderr.write(f"error: {message}\ntry: {self.prog} --help\n")
        raise SystemExit(2)


def add_command(
    commands: Subparsers,
    name: str,
    run: Callable[..., int | None],
    *,
    help: str,
    usage: str = "",
    description: str,
    examples: Sequence[tuple[str, str]],
    common: bool = True,
) -> Parser:
    """Add a sub-command.

    Args:
        commands: Result of ``add_subparsers``.
        name: The sub-command's name.
        run: Called with the parsed arguments and the :class:`~binarize.cli.output.Output`.
        help: Its line in the list of commands.
        usage: Its required arguments; all others are shown as "[options]".
        description: The paragraph at the top of ``--help``.
        examples: (command line, what it does) pairs, shown at the end of ``--help``.
        common: Whether it takes the common options such as ``--json``; false if it has
            sub-commands, which take them.

    Returns:
        The sub-command's parser, for its arguments.
    """
    shown = "\n\n".join(f"  # {what}\n  {line}" for line, what in examples)
    parser: Parser = commands.add_parser(
        name,
        help=help,
        usage=" ".join(filter(None, ("%(prog)s", usage, "[options]"))),
        description=description,
        epilog=f"examples:\n{shown}",
    )
    if common:
        add_common(parser, run)
    else:
        parser.set_defaults(run=run, parser=parser)
    return parser


def add_common(parser: Parser, run: Callable[..., int | None]) -> None:
    """Add what :func:`binarize.cli.app.main` needs, and the options that all commands have.

    Args:
        parser: The command's parser.
        run: Called with the parsed arguments and the :class:`~binarize.cli.output.Output`.
    """
    parser.set_defaults(run=run, parser=parser)
    group = parser.add_argument_group(_COMMON)
    group.add_argument(
        "--json", action="store_true", help="print JSON on stdout; everything else goes to stderr"
    )
    group.add_argument("--quiet", action="store_true", help="no progress on stderr")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def size(text: str) -> tuple[int, int]:
    """Parse ``WIDTHxHEIGHT`` into (rows, columns)."""
    found = re.fullmatch(r"(\d+)[x×,](\d+)", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, such as 192x144")
    return int(found[2]), int(found[1])


def size_or_original(text: str) -> tuple[int, int] | str:
    """Parse ``WIDTHxHEIGHT`` into (rows, columns), or "original"."""
    return text if text == "original" else size(text)


def extent(text: str) -> tuple[int, ...]:
    """Parse ``WIDTHxHEIGHT`` or ``WIDTHxHEIGHTxDEPTH`` into the reverse order."""
    found = re.fullmatch(r"(\d+)[x×,](\d+)(?:[x×,](\d+))?", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not WIDTHxHEIGHT, such as 192x144, nor WIDTHxHEIGHTxDEPTH"
        )
    return tuple(int(part) for part in found.groups()[::-1] if part is not None)


def numbers(text: str) -> list[int]:
    """Parse comma-separated integers, such as ``0,255``."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list like 0,255") from None


def share(text: str) -> float:
    """Parse a share, ``1%`` or ``0.01``."""
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if rest or not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 1% or 0.01")
    return value


def pair(text: str) -> tuple[str, Any]:
    """Parse ``KEY=VALUE``; numbers, lists, True, False and None become Python values."""
    import ast

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key.strip(), ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        return key.strip(), value.strip()
