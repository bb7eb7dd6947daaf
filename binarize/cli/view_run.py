"""The folder of a training as a page that follows it."""

from __future__ import annotations

import io
import json
import math
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from binarize.cli.report_page import metric_table
from binarize.page import Cell, Live, Markup, Section, document, element, live_state, table
from binarize.page.server import Answer, file_answer
from binarize.page.words import format_duration

__all__ = ["RunView", "has_run"]

HISTORY, METRICS = "history.json", "metrics.json"
_FORMAT = "binarize history"
# A running training writes every few seconds, except while it validates.
_SILENT = 600
_FILES = "files/"

State = tuple[tuple[int, int], ...]


def has_run(folder: Path) -> bool:
    """Return whether a folder holds the history of a training."""
    return bool(_read_history(folder)) or "history" in _read(folder / METRICS)


class RunView:
    """The page of a run folder: progress, curves, predictions, results, epochs.

    Files are read again when they change. One that cannot be read, such as one that is being
    written, leaves the page as it was.

    Args:
        folder: The folder of ``binarize train`` or of a :class:`~binarize.train.Trainer`.
        seconds: Time between two looks at it.
    """

    def __init__(self, folder: Path, seconds: float = 3.0) -> None:
        self.folder = folder
        self.seconds = seconds
        self._lock = threading.Lock()  # browsers ask for several things at once
        self._state: State = ()
        self._run: dict[str, Any] = {}
        self._results: dict[str, Any] = {}
        self._charts: dict[bool, bytes] = {}

    def __call__(self, path: str, query: Mapping[str, str]) -> Answer | None:
        """Answer a browser, see :data:`binarize.page.server.Site`."""
        if path.startswith(_FILES):
            return file_answer(self.folder, path.removeprefix(_FILES))
        if path not in ("", "state.json", "curves.svg", "curves-dark.svg"):
            return None
        with self._lock:
            self._refresh()
            if path.endswith(".svg"):
                return self._chart(dark="dark" in path)
            name = self.folder.resolve().name or "/"
            version = f"{hash(self._state):x}"
            title, summary, sections = f"Training: {name}", self._summary(), self._sections(version)
        if path == "":
            page = document(title, summary, sections, Live(version, self.seconds))
            return Answer(page.encode())
        state = live_state(title, summary, sections, version, query.get("since", ""))
        return Answer(json.dumps(state).encode(), "application/json")

    def _refresh(self) -> None:
        state = tuple(_stamp(self.folder / name) for name in (HISTORY, METRICS))
        if state == self._state:
            return
        run, results = _read_history(self.folder), _read(self.folder / METRICS)
        self._results = results or self._results
        # A folder of an earlier version has its history in the results only.
        old = {
            "history": results.get("history"),
            "best": results.get("best"),
            "state": "finished",
        }
        run = run or (old if not (self.folder / HISTORY).exists() else {})
        if isinstance(run.get("history"), list):
            self._run = run
            self._charts.clear()
        self._state = state

    def _chart(self, *, dark: bool) -> Answer | None:
        from binarize.page.curves import curves_figure

        history = self._run.get("history")
        if not history:
            return None
        if dark not in self._charts:
            file = io.BytesIO()
            curves_figure(history, best=_best(self._run), dark=dark).savefig(file, format="svg")
            self._charts[dark] = file.getvalue()
        return Answer(self._charts[dark], "image/svg+xml")

    def _summary(self) -> str:
        run, history = self._run, self._run.get("history", [])
        epochs = run.get("epochs") or len(history)
        done = f"{len(history)} of {epochs} epochs"
        state = run.get("state")
        if state != "running":
            return f"{state or 'no epoch yet'}, {done}"
        parts = [f"training, {done} done"]
        within = run.get("progress")
        if within:
            parts.append(f"step {within['step']} of {within['steps']} of epoch {within['epoch']}")
            if within.get("images_per_second"):
                parts.append(f"{within['images_per_second']:.3g} images/s")
            if within.get("seconds_left") is not None:
                parts.append(f"{format_duration(within['seconds_left'])} left")
        silent = time.time() - self._state[0][0] / 1e9
        if silent > _SILENT:
            parts.append(f"nothing new for {format_duration(silent)}: it may have been killed")
        return ", ".join(parts)

    def _sections(self, version: str) -> list[Section]:
        run, history = self._run, self._run.get("history", [])
        sections = [Section("progress", "Progress", _cards(run, history))]
        if history:
            sections.append(Section("curves", "Curves", _curves(version)))
        shown = run.get("pictures")
        if shown:
            sections.append(Section("pictures", "Predictions", _pictures(shown)))
        results = {k: v for k in ("val", "test") if isinstance(v := self._results.get(k), Mapping)}
        # While a run starts over, the results beside it are those of the one before.
        if results and run.get("state") != "running":
            sections.append(Section("results", "Results", metric_table(results)))
        if history:
            sections.append(Section("epochs", "Epochs", _epochs(history)))
            if history[-1].get("flips"):
                flips = _flips(history[-1])
                sections.append(Section("flips", "Sign changes by layer", flips))
        command = self._results.get("command")
        if command:
            text = element("pre", element("code", shlex.join(map(str, command))), class_="wrap")
            sections.append(Section("command", "Command", text))
        return sections


def _read(path: Path) -> dict[str, Any]:
    """Return a JSON file's content; empty if it is missing, being written, or something else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _read_history(folder: Path) -> dict[str, Any]:
    record = _read(folder / HISTORY)
    return record if record.get("format") == _FORMAT else {}


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _best(run: Mapping[str, Any]) -> int | None:
    best = run.get("best")
    return best["epoch"] if isinstance(best, Mapping) else None


def _cards(run: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> Markup:
    epochs = run.get("epochs") or len(history)
    within = run.get("progress")
    done = len(history) + (within["step"] / within["steps"] if within else 0)
    share = 100 * done / epochs if epochs else 0
    bar = element(
        "svg",
        element("title", f"{share:.0f} % done"),
        element("rect", width=f"{share:.2f}", height=8),
        viewBox="0 0 100 8",
        preserveAspectRatio="none",
    )
    cards = [_card("Epochs", f"{len(history)} of {epochs}", f"{share:.0f} % done", bar)]
    best = run.get("best")
    if isinstance(best, Mapping):
        value = _number(best.get("value"))
        cards.append(_card(f"Best {best['metric']}", value, f"in epoch {best['epoch']}"))
    if history:
        last = history[-1]
        also = f"validation {_number(last['val_loss'])}" if "val_loss" in last else "in training"
        cards.append(_card("Loss", _number(last.get("loss")), f"{also}, epoch {last['epoch']}"))
    elif within and within.get("loss") is not None:
        cards.append(_card("Loss", _number(within["loss"]), f"step {within['step']}"))
    return element("div", *cards, class_="cards")


def _card(title: str, big: str, detail: str, *more: Markup) -> Markup:
    texts = element("h3", title), element("p", big, class_="big"), element("p", detail)
    return element("div", *texts, *more, class_="card")


def _curves(version: str) -> Markup:
    dark = f"curves-dark.svg?v={version}"
    source = element("source", srcset=dark, media="(prefers-color-scheme: dark)")
    light = f"curves.svg?v={version}"
    image = element("img", src=light, alt="Curves of the training", class_="bare")
    return element("picture", source, image)


def _pictures(shown: Mapping[str, Any]) -> Markup:
    epoch, files = shown["epoch"], shown["files"]
    images = (
        element("img", src=f"{_FILES}{name}?epoch={epoch}", alt=f"Prediction {number}")
        for number, name in enumerate(files, start=1)
    )
    text = f"After epoch {epoch}: input, ground truth and prediction of validation images."
    return Markup(element("p", text) + element("div", *images, class_="pictures"))


def _epochs(history: Sequence[Mapping[str, Any]]) -> Markup:
    names = list(
        dict.fromkeys(
            name
            for record in history
            for name, value in record.items()
            if not isinstance(value, list | dict | bool) and name != "epoch"
        )
    )
    rows = [
        (
            None,
            [
                Cell(str(record["epoch"]), numeric=True),
                *(Cell(_number(record.get(name)), numeric=True) for name in names),
            ],
        )
        for record in reversed(history)
    ]
    made = table("epoch-table", ("Epoch", *names), rows, static=True)
    return element("div", made, class_="scroll", tabindex=0, role="region", aria_label="Epochs")


def _flips(record: Mapping[str, Any]) -> Markup:
    ordered = sorted(record["flips"].items(), key=lambda pair: -(pair[1] or 0))
    rows = [(None, [Cell(name), Cell(_percent(share), numeric=True)]) for name, share in ordered]
    heads = "Layer", f"Binary weights that changed sign in epoch {record['epoch']}"
    made = table("flip-table", heads, rows, static=True)
    return element("div", made, class_="scroll", tabindex=0, role="region", aria_label="Layers")


def _number(value: Any) -> str:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.3%}"
