"""Callbacks after each epoch.

All processes call a callback with the trainer and the epoch's history entry once the epoch's
checkpoint is written; training stops early if it returns True. Callbacks keep no state that a
resumed run would miss: everything they need is in ``trainer.history``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from binarize.errors import FileError
from binarize.train.checks import check_positive
from binarize.writing import atomic_write

__all__ = ["CSVLog", "Callback", "EarlyStopping"]

Callback = Callable[[Any, dict[str, Any]], "bool | None"]
"""(trainer, the epoch's history entry) → whether to stop."""


class EarlyStopping:
    """Stop when validation has not improved for ``patience`` epochs.

    Args:
        patience: Epochs to wait for an improvement.

    Raises:
        BinarizeError: It is not positive.
    """

    def __init__(self, patience: int) -> None:
        check_positive(patience=patience)
        self.patience = patience

    def __call__(self, trainer: Any, record: dict[str, Any]) -> bool:
        """Return whether to stop."""
        return trainer.best is not None and record["epoch"] - trainer.best["epoch"] >= self.patience


class CSVLog:
    """Write the history as a CSV table, one row per epoch; resumed runs continue it.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def __call__(self, trainer: Any, record: dict[str, Any]) -> None:
        """Rewrite the whole file, in the main process only.

        Raises:
            FileError: It cannot be written.
        """
        if not trainer.accelerator.is_main_process:
            return
        rows = [
            {name: value for name, value in entry.items() if not isinstance(value, list | dict)}
            for entry in trainer.history
        ]
        names = list({name: None for row in rows for name in row})
        text = io.StringIO()
        table = csv.DictWriter(text, names, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        try:
            with atomic_write(self.path) as temporary:
                temporary.write_text(text.getvalue(), encoding="utf-8")
        except OSError as error:
            raise FileError(
                "csv",
                str(self.path),
                f"cannot be written ({error.strerror})",
                "choose another file",
            ) from error
