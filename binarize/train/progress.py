"""Show how a training goes: a live display on a terminal, a line per epoch elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

__all__ = ["LineProgress", "Progress", "RichProgress", "SilentProgress", "describe"]

# The numbers of an epoch that are missed least, the last one first: the others tell the same.
_LEAST = ("val_loss", "distillation")
# Characters beside a bar itself, with room for 999,999 steps.
_BESIDE = 60


class Progress(Protocol):
    """What the trainer tells while it runs; every method is called by the main process only."""

    def begin(self, epochs: int, steps: int, done: int) -> None:
        """A training of ``epochs`` epochs of ``steps`` steps starts after ``done`` epochs."""
        ...

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        """Step ``step`` (from 1) of epoch ``epoch`` (from 1) is done; the loss if it is known."""
        ...

    def evaluate(self, batch: int, batches: int | None) -> None:
        """Batch ``batch`` (from 1) of an evaluation is done."""
        ...

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch is done; ``record`` is its entry of the history."""
        ...

    def end(self) -> None:
        """The training is over, or was stopped by an error."""
        ...


def describe(record: Mapping[str, Any], width: int | None = None) -> str:
    """One line of an epoch's numbers: "loss 0.512  mIoU 0.431 ... 12.3 s".

    Args:
        record: The epoch's entry of the history.
        width: Characters that the line may have. What does not fit is left out, parts of the loss
            before metrics, and metrics from the last on; None leaves out nothing.
    """
    numbers = {
        name: f"{name} {value:.4g}  "
        for name, value in record.items()
        if isinstance(value, float) and name not in ("lr", "seconds")
    }
    end = f"{record.get('seconds', 0.0):.1f} s"
    room = sum(map(len, numbers.values())) if width is None else width - len(end)
    shown = set()
    for name in sorted(numbers, key=lambda name: name in _LEAST and 1 + _LEAST.index(name)):
        room -= len(numbers[name])
        if room < 0:
            break
        shown.add(name)
    return "".join(text for name, text in numbers.items() if name in shown) + end


class SilentProgress:
    """Show nothing."""

    def begin(self, epochs: int, steps: int, done: int) -> None:
        """Show nothing."""

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        """Show nothing."""

    def evaluate(self, batch: int, batches: int | None) -> None:
        """Show nothing."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Show nothing."""

    def end(self) -> None:
        """Show nothing."""


class LineProgress(SilentProgress):
    """One line per epoch, for logs.

    Args:
        stream: Where to write; None is the standard error stream.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream
        self.epochs = 0

    def begin(self, epochs: int, steps: int, done: int) -> None:
        """Remember the number of epochs."""
        self.epochs = epochs

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write the epoch's line."""
        stream = self.stream or sys.stderr
        print(f"epoch {record['epoch']}/{self.epochs}  {describe(record)}", file=stream, flush=True)


class RichProgress:
    """Bars for the training and the current epoch, with time left, loss and metrics.

    Args:
        console: A rich console; None is one on the standard error stream.
    """

    def __init__(self, console: Any = None) -> None:
        self.console = console
        self._bars: Any = None
        self._all: Any = None
        self._part: Any = None
        self._steps = self._epochs = 0

    def begin(self, epochs: int, steps: int, done: int) -> None:
        """Start the display."""
        self.end()
        self._bars = self._open()
        self._steps, self._epochs = steps, epochs
        self._all = self._bars.add_task(
            "training", total=epochs * steps, completed=done * steps, note=""
        )
        self._part = self._bars.add_task("epoch", total=steps, note="")

    def _open(self) -> Any:
        # Imported here: training without a terminal does without rich.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = self.console or Console(stderr=True)
        bars = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(bar_width=max(4, min(24, console.width - _BESIDE))),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            # Long enough to average over training and validation.
            speed_estimate_period=300,
        )
        bars.start()
        return bars

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        """Move both bars."""
        if step == 1:
            self._bars.reset(self._part)
        note = {} if loss is None else {"note": f"loss {loss:.4g}"}
        self._bars.update(
            self._part, description=f"epoch {epoch}", total=self._steps, completed=step, **note
        )
        self._bars.update(self._all, completed=(epoch - 1) * self._steps + step)

    def evaluate(self, batch: int, batches: int | None) -> None:
        """Use the epoch's bar for the evaluation, or open one."""
        if self._bars is None:
            self._bars = self._open()
            self._part = self._bars.add_task("evaluate", total=batches, note="")
        if batch == 1:
            self._bars.reset(self._part)
        self._bars.update(
            self._part, description="evaluate", total=batches, completed=batch, note=""
        )

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Print the epoch's line above the bars."""
        console = self._bars.console
        head = f"epoch {record['epoch']:>{len(str(self._epochs))}}/{self._epochs}  "
        line = head + describe(record, console.width - len(head))
        console.print(line, highlight=True, markup=False, soft_wrap=True)

    def end(self) -> None:
        """Stop the display."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def open_progress(progress: Progress | bool | None) -> Progress:
    """The display asked for: an object, False for none, None or True for what fits the stream."""
    if progress is False:
        return SilentProgress()
    if progress is None or progress is True:
        return RichProgress() if sys.stderr.isatty() else LineProgress()
    return progress
