"""The report for the terminal: as many columns as fit its width."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from binarize.report.numbers import Report, Row, readable

__all__ = ["View", "to_text"]

_STYLES = {"binarize": "green", "replace": "green", "keep": "", "remove": "dim", "bypass": "cyan"}
_STYLES |= {"int8": "yellow"}
_OTHERS = {
    "norm": "other norms",
    "activation": "activations",
    "operation": "products in forwards",
    "other": "other parameters",
}
_NARROW, _WIDE, _WIDEST = 72, 112, 150
_NOT_KNOWN = "unknown"

_Ground = tuple[str, str, str]
_Column = tuple[str, list[str], Literal["left", "right"]]


@dataclass(frozen=True)
class _Line:
    """A printed line: a row, or several combined."""

    name: str
    rows: tuple[Row, ...]

    def text(self, attribute: str) -> str:
        """Return the value that the rows share."""
        values = {getattr(row, attribute) for row in self.rows}
        return str(values.pop()) if len(values) == 1 else "mixed"

    def total(self, attribute: str) -> float | None:
        values = [getattr(row, attribute) for row in self.rows]
        return None if None in values else sum(values)

    @property
    def shape(self) -> str:
        shapes = {row.shape for row in self.rows if row.shape}
        return "×".join(map(str, shapes.pop())) if len(shapes) == 1 else ""

    @property
    def bits(self) -> str:
        pairs = dict.fromkeys((row.weight_bits, row.activation_bits) for row in self.rows)
        return " ".join(f"{w}/{a}" for w, a in pairs if w is not None)  # weight/activation

    @property
    def calls(self) -> str:
        calls = {row.calls for row in self.rows}
        only = calls.pop() if len(calls) == 1 else None
        return f" ×{only}" if only is not None and only > 1 else ""


class View:
    """A report as printed by rich.

    Args:
        report: The report.
        depth: Combine layers that share this many parts of their names.
    """

    def __init__(self, report: Report, depth: int | None = None) -> None:
        self.report = report
        self.depth = depth

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        report = self.report
        width = options.max_width
        title = Text(f"{report.network}, ", style="bold")
        title.append("float" if report.policy is None else f"1-bit by policy {report.policy!r}")
        title.append(f", operations for {report.inputs}" if report.inputs else "")
        yield title
        yield self._layers(width)
        yield self._totals()
        yield from self._reasons()
        for note in report.notes:
            yield Text(note, style="dim")
        if not report.inputs:
            yield Text("OPs are unknown: they need example inputs", style="dim")

    def __str__(self) -> str:
        return to_text(self)

    # The rows

    def _layers(self, width: int) -> Table:
        lines = list(self._lines())
        columns = self._columns(lines, width)
        reasons = self._whys(lines) if width >= _WIDEST and self.report.policy else None
        # Two spaces between columns, one at either edge.
        taken = sum(max(map(len, (title, *cells))) + 2 for title, cells, _ in columns) + 2
        room = (width - taken) // (1 if reasons is None else 2)
        names = [_shorten(line.name, max(room, 12), line.calls) for line in lines]
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), width=width)
        table.add_column("Layer", ratio=1, no_wrap=True)
        for title, _, justify in columns:
            table.add_column(title, justify=justify, no_wrap=True)
        if reasons is not None:
            table.add_column("Why", ratio=1, no_wrap=True, overflow="ellipsis")
        for i, (line, name) in enumerate(zip(lines, names, strict=True)):
            cells = [name, *(cells[i] for _, cells, _ in columns)]
            cells += [reasons[i]] if reasons is not None else []
            # As Text, because names may contain rich markup.
            table.add_row(*map(Text, cells), style=_STYLES.get(line.text("decision")))
        return table

    def _columns(self, lines: Sequence[_Line], width: int) -> list[_Column]:
        """Return the columns after the name that fit the width: title, cells, justification."""
        columns: list[_Column] = []
        if width >= _WIDE:
            columns.append(("Kind", [line.text("kind") for line in lines], "left"))
            columns.append(("Shape", [line.shape for line in lines], "left"))
        if width >= _NARROW:
            if self.report.policy is not None:
                columns.append(("Decision", [line.text("decision") for line in lines], "left"))
            columns.append(("W/A bits", [line.bits for line in lines], "left"))
        for title in ("Params", "OPs", "Bytes"):
            columns.append(
                (title, [readable(line.total(title.lower())) for line in lines], "right")
            )
        if self.report.policy is not None and width < _WIDEST:
            columns.append(("Why", self._whys(lines, short=True), "left"))
        return columns

    def _whys(self, lines: Sequence[_Line], *, short: bool = False) -> list[str]:
        """Return the numbers of the reasons listed below, or the reason itself if there is one."""
        grounds = list(self._grounds())
        whys = []
        for line in lines:
            mine = {_ground(row) for row in line.rows}
            numbers = [i for i, ground in enumerate(grounds) if ground in mine]
            text = ",".join(str(i + 1) for i in numbers)
            whys.append(
                text
                if short or len(mine) != 1 or not numbers
                else f"{text} {grounds[numbers[0]][1]}"
            )
        return whys

    def _lines(self) -> Iterator[_Line]:
        layers = [row for row in self.report.layers if row.part == "layer"]
        if self.depth is None:
            yield from (_Line(row.name, (row,)) for row in layers)
        else:
            groups: dict[str, list[Row]] = {}
            for row in layers:
                head = ".".join(row.name.split(".")[: max(self.depth, 1)])
                groups.setdefault(head, []).append(row)
            for head, rows in groups.items():
                name = f"{head} ({len(rows)} layers)" if len(rows) > 1 else rows[0].name
                yield _Line(name, tuple(rows))
        for part, words in _OTHERS.items():
            rows = [row for row in self.report.layers if row.part == part]
            if rows:
                yield _Line(f"{words} ({len(rows)})", tuple(rows))
        for row in self.report.layers:
            if row.part == "file":
                yield _Line(row.name, (row,))

    # Totals

    def _totals(self) -> Table:
        report = self.report
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("Total", style="bold")
        eight = report.int8_params > 0
        titles = ("1-bit", *["8-bit"] * eight, "float", "counted as", "float network", "smaller")
        for name in titles:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_row(
            "Params",
            readable(report.binary_params),
            *[readable(report.int8_params)] * eight,
            readable(report.float_params),
            readable(report.params),
            readable(report.reference_params),
            _ratio(report.reference_params, report.params),
        )
        table.add_row(
            "OPs",
            readable(report.binary_ops),
            *[readable(report.int8_ops)] * eight,
            readable(report.float_ops),
            _at_least(report),
            readable(report.reference_ops),
            _ratio(report.reference_ops, report.ops),
        )
        table.add_row(
            "File",
            "",
            "",
            *[""] * eight,
            readable(report.file_bytes, "B"),
            readable(report.reference_bytes, "B"),
            _ratio(report.reference_bytes, report.file_bytes),
        )
        return table

    def _grounds(self) -> dict[_Ground, int]:
        """Return each distinct decision and reason, with the number of rows that it applies to."""
        grounds: dict[_Ground, int] = {}
        for row in self.report.layers:
            if row.decision:
                grounds[_ground(row)] = grounds.get(_ground(row), 0) + 1
        return grounds

    def _reasons(self) -> Iterable[Text]:
        for number, ((decision, reason, rule), rows) in enumerate(self._grounds().items(), 1):
            text = Text(f"{number} ", style="dim")
            text.append(decision, style=_STYLES.get(decision, ""))
            text.append(f" ({rows}): {reason} ")
            text.append(f"[{rule}]", style="dim")
            yield text


def _ground(row: Row) -> _Ground:
    return row.decision, row.reason, row.rule


def _shorten(name: str, room: int, suffix: str) -> str:
    room -= len(suffix)
    # The end of a name is more specific than its beginning.
    return (name if len(name) <= room else "…" + name[-(room - 1) :]) + suffix


def _at_least(report: Report) -> str:
    """Format effective operations; if a row is unknown, their lower bound."""
    if report.ops is None and report.least_ops:
        return f">= {readable(report.least_ops)}"
    return readable(report.ops)


def _ratio(whole: float | None, part: float | None) -> str:
    if whole is None or part is None:
        return _NOT_KNOWN
    return f"{whole / part:.2f}×" if part else ""


def to_text(view: View) -> str:
    """Print a view to a string at the width of the terminal."""
    width = shutil.get_terminal_size((100, 24)).columns
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    console.print(view)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())
