"""Parse the command line, run the sub-command, turn errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from binarize.cli.output import Output
from binarize.cli.parser import Parser
from binarize.errors import BinarizeError, FileError
from binarize.extras import naming_the_extra, require

__all__ = ["BUG", "INTERRUPTED", "MISTAKE", "OK", "build_parser", "is_interruption", "main"]

OK, MISTAKE, BUG, INTERRUPTED = 0, 1, 70, 130

_DESCRIPTION = (
    "Turn a convolutional PyTorch network into a 1-bit one and fine-tune it to recover accuracy."
)
_EPILOG = """\
examples:
  # see everything in action, without any download
  binarize demo

  # preview the conversion of this network, with reasons
  binarize convert smp:Unet:resnet34 --classes 11 --dry-run

  # train the float network, then the binarized one with it as the teacher
  binarize train --data camvid --root data/camvid --model smp:Unet:resnet18 \\
      --policy none --output runs/float
  binarize train --data camvid --root data/camvid --model smp:Unet:resnet18 \\
      --init runs/float/float.safetensors \\
      --teacher runs/float/float.safetensors --output runs/binary

Every command has its own help with examples: binarize train --help
Exit codes: 0 success, 1 an error in the input, 2 an error in the command line,
70 a bug in binarize, 130 interrupted."""


def build_parser() -> Parser:
    """Return the parser of the whole command line."""
    from importlib import import_module

    parser = Parser(prog="binarize", description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    for name in _COMMANDS:
        import_module(f"binarize.cli.{name}").add(commands)
    return parser


_COMMANDS = (
    *("convert", "train", "eval", "predict", "report", "pack", "export", "inspect", "sensitivity"),
    *("frontier", "profile", "bench", "tasks", "view", "demo", "rules", "recipes", "coverage"),
    *("data", "doctor"),
)


def main(argv: Sequence[str] | None = None, parser: Parser | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.
        parser: Parser of a tool that is run in the same way; None takes binarize's.

    Returns:
        The exit code.
    """
    # Output with δ1 or × may go to an ASCII-only terminal.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    parser = parser or build_parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        getattr(args, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if getattr(args, "version", False):
        return _version()
    if not hasattr(args, "run"):
        parser.print_help()
        return OK
    debug = getattr(args, "debug", False) or os.environ.get("BINARIZE_DEBUG", "") not in ("", "0")
    return _guarded(args, debug)


def _guarded(args: Any, debug: bool) -> int:
    out = Output(as_json=getattr(args, "json", False), quiet=getattr(args, "quiet", False))
    try:
        require("rich")
        with naming_the_extra():
            return args.run(args, out) or OK
    except BinarizeError as error:
        return _fail(_in_options(error, args), MISTAKE, debug)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED, False)
    except BrokenPipeError:
        # The reader of our output has closed the pipe (`| head`), which is fine.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except OSError as error:
        if error.errno is None or error.strerror is None:
            return _bug(error, debug)
        where = error.filename if isinstance(error.filename, str) else "output"
        rule = f"cannot be read or written ({error.strerror})"
        reported = FileError("file", where, rule, "check permissions and free disk space")
        return _fail(str(reported), MISTAKE, debug)
    except Exception as error:
        if is_interruption(error):
            return _fail("interrupted", INTERRUPTED, False)
        return _bug(error, debug)


def _in_options(error: BinarizeError, args: Any) -> str:
    """Return an error's text; a missing value is named by its option."""
    option = f"--{error.argument.replace('_', '-')}"
    known = [word for action in args.parser._actions for word in action.option_strings]
    if error.value is None and option in known:
        return f"{option}: {error.rule}; {error.remedy}"
    return str(error)


def _bug(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    text = " ".join(str(error).split())[:300]
    return _fail(
        f"{type(error).__name__}: {text} (a bug in binarize, or an unexpected input: "
        "run again with --debug for the traceback)",
        BUG,
        False,
    )


def _fail(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    lead = "" if code == INTERRUPTED else "error: "
    print(f"{lead}{' '.join(text.split())}", file=sys.stderr, flush=True)
    return code


def _version() -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        print(f"binarize {version('binarize-torch')}")
    except PackageNotFoundError:
        print("binarize (not installed, run from a checkout)")
    return OK


def is_interruption(error: BaseException | None) -> bool:
    """Return whether an error is an interruption, or was raised while handling one.

    Args:
        error: The error.
    """
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
