"""The rows on disk, one JSON line each, from which an interrupted survey continues."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from binarize.errors import FileError
from binarize.survey.case import Case
from binarize.survey.row import Row
from binarize.writing import atomic_write

__all__ = ["Records", "versions"]

_PACKAGES = ("torch", "timm", "segmentation-models-pytorch", "torchvision")


def versions() -> dict[str, str]:
    """Return the library versions that affect a survey's results."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


class Records:
    """Rows in a file: versions in the first line, then one row per line.

    Args:
        path: The file; read if it exists with the same versions, otherwise started over.

    Attributes:
        rows: The rows by key.

    Raises:
        FileError: The file is not a survey record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        self._open = False
        if path.exists():
            try:
                self._read(path.read_text(encoding="utf-8"))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise FileError(
                    "output",
                    str(path),
                    f"this file is not a survey record ({type(error).__name__})",
                    "move it away, or give another --output",
                ) from error

    def _read(self, text: str) -> None:
        # Text after the last line break is an interrupted write.
        head, *lines = text.splitlines()[: text.count("\n")]
        rows = [Row.from_dict(json.loads(line)) for line in lines]
        if dict(json.loads(head)["versions"]) == versions():
            self.rows = {row.key: row for row in rows}

    def add(self, row: Row) -> None:
        """Add a row, in memory and in the file."""
        self.rows[row.key] = row
        if self._open:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row.to_dict()))
            return
        lines = [_line({"versions": versions()}), *(_line(r.to_dict()) for r in self.rows.values())]
        self.path.write_text("".join(lines), encoding="utf-8")
        self._open = True

    def missing(self, cases: Sequence[Case], *, light: bool = False) -> list[Case]:
        """Return cases without a row, or with only a light one where a full one is needed."""
        known = {key: row.light for key, row in self.rows.items()}
        return [
            case
            for case in cases
            if case.key not in known or (known[case.key] and (case.sample or not light))
        ]

    def of(self, cases: Sequence[Case]) -> list[Row]:
        """Return the rows of cases, in their order."""
        return [self.rows[case.key] for case in cases if case.key in self.rows]

    def write(self, path: Path, cases: Sequence[Case], summary: Any) -> None:
        """Write the rows of the cases as one JSON document.

        As few reasons cover many layers, they are in a table, ``reasons``. A row's kept layers are
        ``[index into the table, layers, weights, dense weights]`` each.

        Args:
            path: The file to write.
            cases: The cases whose rows to write, in order.
            summary: Their summary as plain data.
        """
        with atomic_write(path) as temporary:
            temporary.write_text("".join(self._document(cases, summary)), encoding="utf-8")

    def _document(self, cases: Sequence[Case], summary: Any) -> Iterator[str]:
        # One row per line, so that surveys can be compared line by line.
        reasons: dict[str, int] = {}
        rows = [_dense(_short(row.to_dict(), reasons)) for row in self.of(cases)]
        yield f'{{"versions": {json.dumps(versions())},\n"summary": {json.dumps(summary)},\n'
        yield '"reasons": [\n' + ",\n".join(reasons) + "\n],\n"
        yield '"rows": [\n' + ",\n".join(rows) + "\n]}\n"


def _short(row: dict[str, Any], reasons: dict[str, int]) -> dict[str, Any]:
    """Replace a row's reasons by indices into a table, which grows by new reasons."""
    if "kept" in row:
        keys = [_dense({"roles": g["roles"], "reason": g["reason"]}) for g in row["kept"]]
        numbers = [reasons.setdefault(one, len(reasons)) for one in keys]
        row["kept"] = [
            [number, group["layers"], group["weights"], group["dense"]]
            for number, group in zip(numbers, row["kept"], strict=True)
        ]
    return row


def _dense(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
