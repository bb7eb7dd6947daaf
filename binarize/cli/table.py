"""``binarize table``: Params and OPs of the paper's tables, as counted and as published."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.errors import FileError

if TYPE_CHECKING:
    from binarize.cli.paper_tables import Check, Counted

__all__ = ["add", "run"]

_DESCRIPTION = """\
Build the BiDense paper's network (ConvNeXt-Tiny + UPerNet), binarize it by every method of the
paper's Tables 1 and 4, and print Params and OPs beside the published numbers. Nothing is run or
downloaded, only counted. Only the differences between rows can be checked."""

_EXAMPLES = [
    ("binarize table", "all rows, and the differences between them"),
    ("binarize table --json", "the same as JSON"),
    ("binarize table --output docs/tables.md", "the same as a document"),
]

_NOTE = (
    "Our own counts of the paper's network by each of its methods, beside the published numbers. "
    "Params = float + binary / 32, OPs = float + binary / 64, where an OP is a multiply-accumulate "
    "of a convolution or linear layer. We count the released network; its float version has "
    "107.5 K fewer parameters and a quarter of the operations that the paper prints, so absolute "
    "numbers cannot agree: the released BiDense itself has 1,551 K. For parameters this cancels "
    "out in the differences between rows. Published OPs also differ between rows with the "
    "same convolutions; the paper does not say why. As released, all rows binarize the same "
    "layers, BiDense rows have scales per channel, and PReLUs have two values per channel."
)


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "table",
        run,
        help="count the paper's network by every method, beside the published numbers",
        usage="[--output FILE]",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write a Markdown document"
    )


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Count, compare, print; exit code 1 if a difference is neither met nor explained."""
    if args.output is not None and not args.output.parent.is_dir():
        raise FileError("output", str(args.output), "its folder does not exist", "create it first")
    from binarize.cli.paper_tables import check_rows, count_rows

    with out.step("counting"):
        rows = count_rows()
    checks = check_rows(rows)
    cells = [[*row[:2], *row[3:]] for row in _row_cells(rows.values())]
    out.console.print(_view([*_ROW_TITLES[:2], *_ROW_TITLES[3:]], cells))
    out.print(f"\n{_NOTE}\n")
    out.console.print(_view(_CHECK_TITLES, _check_cells(checks)))
    for check in checks:
        if check.reason:
            out.print(f"\n{check.what} ({check.more} - {check.less}): {check.reason}")
    if args.output is not None:
        _write(args.output, _document(rows.values(), checks))
        out.print(f"\nwritten: {args.output}", wrap=False)
    out.emit(
        {
            "rows": [row.to_dict() for row in rows.values()],
            "differences": [check.to_dict() for check in checks],
        }
    )
    return 1 if any(not check.agrees and not check.reason for check in checks) else None


_ROW_TITLES = (
    *("table", "row", "policy", "Params K", "published", "diff"),
    *("OPs G", "published", "diff"),
)
_CHECK_TITLES = ("what", "row", "minus row", "counted K", "published", "within 3 K")


def _row_cells(rows: Iterable[Counted]) -> list[tuple[str, ...]]:
    return [
        (
            " ".join(map(str, counted.row.tables)),
            counted.row.method,
            counted.row.policy or "",
            f"{counted.params:,.1f}",
            f"{counted.row.params:,}",
            f"{counted.params - counted.row.params:+,.1f}",
            f"{counted.ops:.2f}",
            f"{counted.row.ops:.2f}",
            f"{counted.ops - counted.row.ops:+.2f}",
        )
        for counted in rows
    ]


def _check_cells(checks: Iterable[Check]) -> list[tuple[str, ...]]:
    return [
        (
            check.what,
            check.more,
            check.less,
            f"{check.counted:.1f}",
            str(check.published),
            "yes" if check.agrees else "no, see below",
        )
        for check in checks
    ]


def _view(titles: Sequence[str], cells: Iterable[Sequence[str]]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        number = title in ("Params K", "published", "diff", "OPs G", "counted K")
        table.add_column(title, justify="right" if number else "left", no_wrap=title != "what")
    for row in cells:
        table.add_row(*row)
    return table


def _document(rows: Iterable[Counted], checks: Sequence[Check]) -> str:
    parts = [
        "# The paper's tables, recounted",
        "Written by `binarize table --output docs/tables.md`; see `binarize table --help`.",
        "## Params and OPs (Tables 1 and 4)",
        _NOTE,
        _markdown(_ROW_TITLES, _row_cells(rows)),
        "## Differences between rows",
        _markdown(_CHECK_TITLES, _check_cells(checks)),
        *(f"- {check.what} ({check.more} − {check.less}): {check.reason}." for check in checks),
    ]
    return "\n\n".join(part for part in parts if not part.endswith(": .")) + "\n"


def _markdown(titles: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileError(
            "output", str(path), f"cannot be written ({error.strerror})", "choose another path"
        ) from error
