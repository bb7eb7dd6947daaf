"""What a run leaves in its folder for people to look at, while it trains and afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from binarize.train.progress.displays import Clock, Progress, report_images, report_note
from binarize.train.progress.pictures import FOLDER, Pictures
from binarize.writing import atomic_write, write_json

__all__ = ["CURVES", "FORMAT", "HISTORY", "RunLog"]

FORMAT = "binarize history"
HISTORY, CURVES = "history.json", "curves.png"
# Seconds between two writes within an epoch, and between two drawings of the curves, which take up
# to a second: often enough for a person who watches, and nothing beside the training.
_PAUSE, _DRAWING_PAUSE = 5.0, 30.0


class RunLog:
    """A progress display that also writes ``history.json`` and ``curves.png`` into a folder.

    The history is written after each epoch and every few seconds within one; the curves are drawn
    after an epoch, at most twice a minute, and at the end. Both are written atomically, and only
    by the main process. A file that cannot be written is reported once and stops nothing: the
    checkpoints hold everything that a training needs.

    Args:
        inner: The display for the user.
        folder: The run's folder.
        facts: Task and metric, as plain values.
        history: The epochs that are done.
        best: Returns the best epoch so far.
    """

    def __init__(
        self,
        inner: Progress,
        folder: Path,
        facts: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        best: Callable[[], Mapping[str, Any] | None],
    ) -> None:
        self.inner = inner
        self.folder = folder
        self.facts = dict(facts)
        self.history = list(history)
        self.best = best
        self.pictures: dict[str, Any] | None = None
        self.finished = False
        self._clock = Clock(0, 0, 0)
        self._within: dict[str, Any] | None = None
        self._written = self._drawn = 0.0
        self._wrote = self._stale = self._failed = False

    def begin(self, epochs: int, steps: int, done: int) -> None:
        """Start; nothing is written yet."""
        self.inner.begin(epochs, steps, done)
        self.facts["epochs"] = epochs
        self._clock = Clock(epochs, steps, done)
        self._written = self._drawn = time.monotonic()
        for name in (HISTORY, CURVES):  # left by a run that was killed while writing
            for file in self.folder.glob(f".{name}.*.part"):
                with suppress(OSError):
                    file.unlink(missing_ok=True)

    def images(self, count: int) -> None:
        """Measure the speed."""
        report_images(self.inner, count)
        self._clock.images(count)

    def note(self, text: str) -> None:
        """Pass a line to the user."""
        report_note(self.inner, text)

    def step(self, epoch: int, step: int, loss: float | None) -> None:
        """Write the progress within the epoch, if the last time was long ago."""
        self.inner.step(epoch, step, loss)
        self._clock.step(epoch, step)
        if time.monotonic() - self._written < _PAUSE:
            return
        self._within = {
            "epoch": epoch,
            "step": step,
            "steps": self._clock.steps,
            "loss": loss,
            "images_per_second": self._clock.rate or None,
            "seconds_left": self._clock.left(),
        }
        self._write("running")

    def evaluate(self, batch: int, batches: int | None) -> None:
        """Exclude the time from the speed."""
        self.inner.evaluate(batch, batches)
        self._clock.pause()

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Add an epoch, write the history, and draw the curves if the last time was long ago."""
        self.history.append(record)
        self._within = None
        self._stale = True
        self._write("running")
        if time.monotonic() - self._drawn >= _DRAWING_PAUSE:
            self._draw()
        self.inner.epoch(record)

    def end(self) -> None:
        """Write how it ended, unless nothing was written before."""
        if self._wrote:
            self._write("finished" if self.finished else "stopped")
        if self._stale:
            self._draw()
        self.inner.end()

    def draw(
        self, pictures: Pictures, network: nn.Module, device: torch.device, epoch: int
    ) -> None:
        """Write what the network predicts; the history then names the files.

        Args:
            pictures: The validation images.
            network: The network.
            device: Its device.
            epoch: Number of the epoch, from 1.
        """

        def write() -> None:
            files = pictures.write(network, device, self.folder)
            self.pictures = {"epoch": epoch, "files": files}

        self._attempt(FOLDER, write)

    def _attempt(self, name: str, write: Callable[[], None]) -> None:
        """Write a file; if that fails, report it once and continue."""
        try:
            write()
        except OSError as error:
            if not self._failed:
                self._failed = True
                cause = error.strerror or error
                self.note(f"note: cannot write {name} ({cause}); training continues without it")

    def _write(self, state: str) -> None:
        record = {
            "format": FORMAT,
            **self.facts,
            "state": state,
            "best": self.best(),
            "progress": self._within,
            "pictures": self.pictures,
            "history": self.history,
        }

        def write() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / HISTORY, record)

        self._attempt(HISTORY, write)
        self._written, self._wrote = time.monotonic(), True

    def _draw(self) -> None:
        from binarize.page.curves import curves_figure

        best = self.best()
        figure = curves_figure(self.history, best=None if best is None else best["epoch"])

        def write() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.folder / CURVES) as temporary:
                figure.savefig(temporary, format="png")

        self._attempt(CURVES, write)
        self._drawn, self._stale = time.monotonic(), False
