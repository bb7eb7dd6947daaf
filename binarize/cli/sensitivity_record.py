"""Measured layers on disk, one JSON line each, from which an interrupted command resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from binarize.report import SiteSensitivity
from binarize.writing import jsonable

__all__ = ["Record"]


class Record:
    """Rows in a file: their basis in the first line, then one row per line.

    Args:
        path: The file; read if it exists with the same basis, otherwise started over.
        basis: What the rows depend on, plain data.

    Attributes:
        rows: The rows by layer.
    """

    def __init__(self, path: Path, basis: Mapping[str, Any]) -> None:
        self.path = path
        self.rows: dict[str, SiteSensitivity] = {}
        self._head = json.dumps(jsonable(basis), sort_keys=True)
        self._begun = False
        if path.exists():
            self._read(path.read_text(encoding="utf-8", errors="replace"))

    def _read(self, text: str) -> None:
        # Text after the last line break is an interrupted write.
        head, *lines = text.splitlines()[: text.count("\n")] or [""]
        if head != self._head:
            return
        try:
            rows = [SiteSensitivity.from_dict(json.loads(line)) for line in lines]
        except (ValueError, KeyError, TypeError):
            return
        self.rows = {row.site: row for row in rows}

    def add(self, row: SiteSensitivity) -> None:
        """Add a row, in memory and in the file."""
        self.rows[row.site] = row
        lines = [json.dumps(row.to_dict())]
        if not self._begun:
            lines = [self._head, *(json.dumps(r.to_dict()) for r in self.rows.values())]
        with self.path.open("a" if self._begun else "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
        self._begun = True

    def remove(self) -> None:
        """Delete the file, once the result is complete."""
        self.path.unlink(missing_ok=True)
