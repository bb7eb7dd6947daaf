"""The display of progress, on a terminal or in the log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from binarize.page.words import format_duration

__all__ = [
    "Clock",
    "LineProgress",
    "Progress",
    "RichProgress",
    "SilentProgress",
    "describe",
    "open_progress",
    "report_images",
    "report_note",
]

_LOG = logging.getLogger("binarize.train")

# The most dispensable numbers of an epoch, last one first: the others say the same.
_LEAST = ("val_loss", "distillation")
# Characters beside a bar itself, with room for 999,999 steps.
_BESIDE = 60


class Progress(Protocol):
    """What the trainer reports while it runs, in the main process only.

    Two optional methods: ``images(count)`` is called before each step with
    the number of images over all processes, ``note(text)`` with a line for the user.
    """

    def begin(self, epochs: int, steps: int, done: int) -> None:
        """Training of ``epochs`` epochs of ``steps`` steps starts, ``done`` epochs are done."""
        ...

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        """Step ``step`` (from 1) of epoch ``epoch`` (from 1) is done; the loss if it is known."""
        ...

    def evaluate(self, batch: int, batches: int | None) -> None:
        """Batch ``batch`` (from 1) of an evaluation is done."""
        ...

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch is done; ``record`` is its history entry."""
        ...

    def end(self) -> None:
        """Training is over, or was stopped by an error."""
        ...


def describe(record: Mapping[str, Any], width: int | None = None) -> str:
    """Format an epoch's numbers as one line: "loss 0.512  mIoU 0.431 ... 12.3 s".

    Args:
        record: The epoch's history entry.
        width: Maximum number of characters. What does not fit is omitted: parts of the loss
            first, then metrics from the last on; None omits nothing.
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


def report_images(show: Any, count: int) -> None:
    """Report the number of images of the next step, if the display supports it."""
    images = getattr(show, "images", None)
    if images is not None:
        images(count)


def report_note(show: Any, text: str) -> None:
    """Report a line for the user, if the display supports it."""
    note = getattr(show, "note", None)
    if note is not None:
        note(text)


class Clock:
    """Images per second, and the remaining training time."""

    def __init__(self, epochs: int, steps: int, done: int) -> None:
        self.steps = steps
        self.start = self.done = done * steps
        self.all = epochs * steps
        self.started = self.mark = time.monotonic()
        self.count = 0
        self.rate = 0.0

    def images(self, count: int) -> None:
        """Count the images of a step."""
        self.count += count
        passed = time.monotonic() - self.mark
        if passed >= 1:  # over the last second or so: an epoch's mean would hide a stall
            self.rate, self.count, self.mark = self.count / passed, 0, time.monotonic()

    def pause(self) -> None:
        """Exclude the time until now, which was spent on something else."""
        self.count, self.mark = 0, time.monotonic()

    def step(self, epoch: int, step: int) -> None:
        """Record a finished step."""
        self.done = (epoch - 1) * self.steps + step

    def left(self) -> float | None:
        """Return the seconds until the end, including validation; None before the first step."""
        if self.done == self.start:
            return None
        passed = time.monotonic() - self.started
        return passed / (self.done - self.start) * (self.all - self.done)


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
    """One line per epoch, for logs, and occasional lines within long epochs.

    Args:
        stream: The output stream; None logs the lines at level INFO (logger ``binarize.train``).
        every: Seconds between two lines within an epoch.
    """

    def __init__(self, stream: TextIO | None = None, every: float = 60.0) -> None:
        self.stream = stream
        self.every = every
        self.epochs = 0
        self._clock = Clock(0, 0, 0)
        self._last = 0.0

    def begin(self, epochs: int, steps: int, done: int) -> None:
        """Remember the number of epochs and steps."""
        self.epochs = epochs
        self._clock = Clock(epochs, steps, done)
        self._last = time.monotonic()

    def images(self, count: int) -> None:
        """Measure the speed."""
        self._clock.images(count)

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        """Write a line if the last one was long ago."""
        clock = self._clock
        clock.step(epoch, step)
        if time.monotonic() - self._last < self.every:
            return
        parts = [f"epoch {epoch}/{self.epochs}", f"step {step}/{clock.steps}"]
        if loss is not None:
            parts.append(f"loss {loss:.4g}")
        if clock.rate:
            parts.append(f"{clock.rate:.3g} images/s")
        left = clock.left()
        if left is not None:
            parts.append(f"{format_duration(left)} left")
        self.note("  ".join(parts))

    def evaluate(self, batch: int, batches: int | None) -> None:
        """Exclude the time from the speed."""
        self._clock.pause()

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write the epoch's line."""
        self.note(f"epoch {record['epoch']}/{self.epochs}  {describe(record)}")

    def note(self, text: str) -> None:
        """Write a line."""
        self._last = time.monotonic()
        if self.stream is None:
            _LOG.info(text)
        else:
            self.stream.write(f"{text}\n")
            self.stream.flush()


class RichProgress:
    """Progress bars for training and the current epoch, with time left, loss and metrics.

    Args:
        console: A rich console; None is one on the standard error stream.
    """

    def __init__(self, console: Any = None) -> None:
        self.console = console
        self._bars: Any = None
        self._all: Any = None
        self._part: Any = None
        self._steps = self._epochs = 0
        self._clock = Clock(0, 0, 0)

    def begin(self, epochs: int, steps: int, done: int) -> None:
        """Start the display."""
        self.end()
        self._bars = self._open()
        self._steps, self._epochs = steps, epochs
        self._clock = Clock(epochs, steps, done)
        self._all = self._bars.add_task(
            "training", total=epochs * steps, completed=done * steps, note=""
        )
        self._part = self._bars.add_task("epoch", total=steps, note="")

    def _console(self) -> Any:
        from rich.console import Console

        return self.console or Console(stderr=True)

    def _open(self) -> Any:
        # Imported here: without a terminal, rich is not needed.
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = self._console()
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

    def images(self, count: int) -> None:
        """Measure the speed."""
        self._clock.images(count)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        console = self._bars.console if self._bars is not None else self._console()
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        """Advance both bars."""
        if step == 1:
            self._bars.reset(self._part)
        note = {} if loss is None else {"note": f"loss {loss:.4g}"}
        if self._clock.rate:
            self._bars.update(self._all, note=f"{self._clock.rate:.3g} img/s")
        self._bars.update(
            self._part, description=f"epoch {epoch}", total=self._steps, completed=step, **note
        )
        self._bars.update(self._all, completed=(epoch - 1) * self._steps + step)

    def evaluate(self, batch: int, batches: int | None) -> None:
        """Use the epoch's bar for the evaluation, or open one."""
        self._clock.pause()
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
    """Return the requested display: an object, False for none, True or None as for the Trainer."""
    if progress is False:
        return SilentProgress()
    if progress is None or progress is True:
        if sys.stderr.isatty():
            return RichProgress()
        return LineProgress(sys.stderr if progress else None)
    return progress
