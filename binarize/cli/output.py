"""Command output: results to stdout, progress to stderr, or JSON on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from binarize.writing import jsonable

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Output"]


class Output:
    """The streams of one command.

    Args:
        as_json: Standard output gets one JSON document and nothing else.
        quiet: No progress, and with ``as_json`` only the JSON.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    @property
    def console(self) -> Console:
        """A rich console for results: stdout, or stderr if stdout carries JSON."""
        from rich.console import Console

        return Console(stderr=self.as_json, quiet=self.as_json and self.quiet, highlight=False)

    def print(self, *values: Any, wrap: bool = True) -> None:
        """Show results; ``wrap=False`` does not break long lines such as paths."""
        self.console.print(*values, markup=False, soft_wrap=not wrap)

    def emit(self, answer: Any) -> None:
        """Print the answer as JSON, if requested."""
        if self.as_json:
            # JSON is UTF-8; where the stream is not, escapes are.
            escaped = "utf" not in (sys.stdout.encoding or "utf-8").lower()
            text = json.dumps(jsonable(answer), indent=2, ensure_ascii=escaped, allow_nan=False)
            sys.stdout.write(text + "\n")

    def of_a_step(self) -> Output:
        """The streams of a command that is a step of this one: its answer is for nobody."""
        inner = Output(as_json=self.as_json, quiet=self.quiet)
        inner.emit = lambda answer: None  # type: ignore[method-assign]
        return inner

    def note(self, text: str) -> None:
        """Report progress on stderr."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show that a step of unknown length is running."""
        if self.quiet or not sys.stderr.isatty():
            self.note(text)
            yield
            return
        from rich.console import Console

        with Console(stderr=True).status(text):
            yield
        self.note(text)

    @contextmanager
    def bar(self, text: str, total: int | None) -> Iterator[Callable[[int, int | None], None]]:
        """Show a progress bar on a terminal; yields a callback for (items done, total items)."""
        if self.quiet or not sys.stderr.isatty():
            if total is None or total > 0:
                self.note(text)
            yield lambda done, total: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        with bars:
            task = bars.add_task(text, total=total)
            yield lambda done, total: bars.update(task, completed=done, total=total)
