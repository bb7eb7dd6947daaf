"""``binarize coverage``: convert and check every network of a folder of Python files."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.output import Output
from binarize.cli.parser import Parser, Subparsers, add_command
from binarize.errors import BinarizeError, FileError

if TYPE_CHECKING:
    from binarize.survey import Case, Records
    from binarize.survey.examine import Build

__all__ = ["add", "add_survey_options", "run", "run_survey"]

_DESCRIPTION = """\
Convert every network of a folder of Python files, check each result against its original, and
write a document and a JSON file. A network is what a function make...() without arguments returns,
or one that is annotated to return a Module. An interrupted survey continues where it stopped; the
files of a finished one are replaced."""

_EXAMPLES = [
    ("binarize coverage --wild nets/ -o mine.md", "all networks of the folder"),
    ("binarize coverage --wild nets/ --list", "only list them"),
    ("binarize coverage --wild nets/unet.py:make_large", "one network"),
    ("binarize coverage --wild nets/ '*unet*' --minutes 10", "some, as many as the time allows"),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "coverage",
        run,
        help="try the conversion on every network of a folder",
        usage="--wild FOLDER [PATTERN ...] [-o FILE]",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--wild",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="every make...() in the folder's Python files, or FILE.py:NAME",
    )
    add_survey_options(parser)


def add_survey_options(parser: Parser) -> None:
    """Add the options that all surveys have."""
    parser.add_argument(
        "patterns", nargs="*", metavar="PATTERN", help="names or families (default: everything)"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("coverage.md"),
        metavar="FILE",
        help="the document (default coverage.md); the JSON file goes next to it",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default 1)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        metavar="S",
        help="time limit per network in seconds (default 300)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="stop after this time and write the results so far",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start over instead of continuing an interrupted survey",
    )
    parser.add_argument("--list", action="store_true", help="only print the networks' names")


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Survey, and write the document; exit code 1 if a network fails."""

    def cases() -> list[Case]:
        from binarize.survey import wild_cases

        return wild_cases(args.wild)

    return run_survey(args, out, cases, f"binarize coverage --wild {args.wild}")


def run_survey(
    args: argparse.Namespace,
    out: Output,
    known: Callable[[], list[Case]],
    command: str,
    *,
    light: bool = False,
    build: Build | None = None,
) -> int | None:
    """Survey networks, and write the document.

    Args:
        args: Values of the options of :func:`add_survey_options`.
        out: Streams of the command.
        known: Lists the networks.
        command: What was run, for the document, without patterns and output.
        light: Only convert and compare shapes, except for the samples.
        build: Builds a network; None takes the factory in its file.

    Returns:
        The exit code: 1 if a network fails.
    """
    _check(args)
    with out.step("listing the networks"):
        from binarize.survey import Records, build_wild, select, summarize, write_document

        cases = select(known(), args.patterns)
    if args.list:
        for case in cases:
            out.print(case.key, wrap=False)
        out.emit([case.key for case in cases])
        return None
    record = args.output.with_suffix(".partial.jsonl")
    if args.fresh:
        record.unlink(missing_ok=True)
    records = Records(record)
    _survey(args, out, cases, records, light, build or build_wild)
    rows = records.of(cases)
    summary = summarize(rows, len(cases))
    words = [command, *args.patterns, *["--light"] * bool(summary.light), "-o", str(args.output)]
    write_document(args.output, rows, len(cases), " ".join(words))
    data = args.output.with_suffix(".json")
    records.write(data, cases, summary.to_dict())
    # It may hold more networks than this run's.
    if len(rows) == len(cases) == len(records.rows):
        record.unlink(missing_ok=True)
    _show(summary, out)
    out.print(f"written: {args.output}, {data}", wrap=False)
    out.emit({"document": args.output, "data": data, "summary": summary.to_dict()})
    return 1 if summary.failures else None


def _check(args: argparse.Namespace) -> None:
    if not args.output.parent.is_dir():
        raise FileError("output", str(args.output), "its folder does not exist", "create it first")
    if args.output.suffix in (".json", ".jsonl"):
        raise FileError(
            "output", str(args.output), "is the document", "give a name such as coverage.md"
        )
    for name, least in (("jobs", 1), ("timeout", 1), ("minutes", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise BinarizeError(name, value, f"must be at least {least}", "give a larger number")


def _survey(
    args: argparse.Namespace,
    out: Output,
    cases: list[Case],
    records: Records,
    light: bool,
    build: Build,
) -> None:
    from binarize.survey import spread, survey

    missing = records.missing(spread(cases), light=light)
    done = len(cases) - len(missing)
    if done and missing:
        out.note(f"continuing an interrupted survey: {done} of {len(cases)} networks are done")
    end = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    if not missing or args.minutes == 0:
        return
    with out.bar("networks", len(cases)) as advance:
        for row in survey(missing, args.jobs, args.timeout, light=light, build=build):
            records.add(row)
            done += 1
            for check, cause in row.failures.items():
                out.note(f"{row.key}: {check}: {cause}")
            advance(done, None)
            if end is not None and time.monotonic() > end:
                break


def _show(summary: Any, out: Output) -> None:
    out.print(
        f"{summary.networks} of {summary.planned} networks: {summary.converted} converted, "
        f"{summary.nothing} with nothing to binarize, {summary.original} that fail by themselves, "
        f"{summary.failed} failed, {summary.checks} failed a check"
    )
    out.print(
        f"{summary.families_converted} of {summary.families} convolutional families converted "
        f"whole; {summary.target_on_maps} of {summary.convolutional} convolutional networks have "
        "95 % of their convolutions on feature maps larger than 1x1 binary"
    )
    for failure in summary.failures:
        out.print(f"{failure['network']}: {failure['check']}: {failure['cause']}", wrap=False)
