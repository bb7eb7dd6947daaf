"""Checkpoints: what they hold, when they are written, which are kept, how a run resumes."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from binarize.errors import BinarizeError, FileError
from binarize.train.processes import is_distributed
from binarize.train.schedules import WeightAverage, applied
from binarize.train.settings import differences
from binarize.writing import atomic_write

__all__ = [
    "Saver",
    "checkpoint_path",
    "parse_every",
    "read_checkpoint",
    "reject_other_run",
    "restore",
    "stamp",
    "write_checkpoint",
]

FORMAT = "binarize training state"
VERSION = 1
# For states saved within an epoch, which versions that only know whole epochs would resume wrongly.
VERSION_INSIDE = 2


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values atomically: a complete file or none.

    Raises:
        FileError: The folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            version = VERSION_INSIDE if "part" in state else VERSION
            torch.save({"format": FORMAT, "version": version, **state}, file)
    except (OSError, RuntimeError) as error:
        # On a full disk torch's archive writer only reports missing bytes and hides the cause.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None and "enforce fail" not in str(error):
            raise
        reason = getattr(cause, "strerror", None) or "the file is incomplete"
        raise FileError(
            "output_dir",
            str(path.parent),
            f"cannot write {path.name} ({reason})",
            "free some space or choose another folder",
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state without running any code from the file.

    Raises:
        FileError: The file is missing, damaged, or not a training state of this version.
    """
    if not path.is_file():
        raise FileError("resume", str(path), "no such file", "give a checkpoint, or 'auto'")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise FileError(
            "resume", str(path), "cannot be read as a checkpoint", "start over without resume"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise FileError(
            "resume", str(path), "is not a training state", "give the last.pt of a training"
        )
    if state.get("version") not in (VERSION, VERSION_INSIDE):
        raise FileError(
            "resume",
            str(path),
            f"has version {state.get('version')}, this package reads up to {VERSION_INSIDE}",
            "resume with the version that wrote it",
        )
    return state


# May differ: these affect file locations or speed, but not what is learnt.
_FREE = ("root", "bf16", "compile", "val_every")


def checkpoint_path(resume: str | Path | None, output_dir: Path | None) -> Path | None:
    """Return the file to resume from, or None to start from scratch.

    Args:
        resume: None, "auto" (``last.pt`` of the output folder, if there is one), a file, or a
            folder with ``last.pt``.
        output_dir: The output folder.

    Raises:
        FileError: The file does not exist, or "auto" has no output folder.
    """
    if resume is None:
        return None
    if str(resume) == "auto":
        if output_dir is None:
            raise FileError("resume", "auto", "needs output_dir", "give the folder of the run")
        path = output_dir / "last.pt"
        return path if path.is_file() else None
    path = Path(resume).expanduser()
    path = path / "last.pt" if path.is_dir() else path
    if not path.is_file():
        raise FileError("resume", str(resume), "no such file", "give a checkpoint, or 'auto'")
    return path


def reject_other_run(output_dir: Path) -> None:
    """Refuse to start a run in the folder of another one.

    Raises:
        FileError: There is a checkpoint in it.
    """
    if (output_dir / "last.pt").is_file():
        raise FileError(
            "output_dir",
            str(output_dir),
            "holds the checkpoints of another run",
            "give resume='auto' to continue, overwrite=True to start over, or another folder",
        )


def restore(
    path: Path,
    state: dict[str, Any],
    settings: dict[str, Any],
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> list[str]:
    """Restore student, optimizer and scheduler from a checkpoint.

    Returns:
        A line for each setting that differs from the checkpoint's and takes its new value.

    Raises:
        FileError: It has another task, schedule, seed, teacher, data or network; nothing is
            changed then.
    """
    if "optimizer" not in state:
        raise FileError(
            "resume", str(path), "contains weights only", "give the last.pt of the training"
        )
    applied = []
    for name, before, value in differences(state["settings"], settings):
        if name.rpartition(".")[2] not in _FREE:
            raise FileError(
                "resume",
                str(path),
                f"was made with {name}={_shown(before)}, this run has {_shown(value)}",
                f"use the same {name}, or start over without resume",
            )
        applied.append(f"{name} changes from {_shown(before)} to {_shown(value)}")
    ours, theirs = student.state_dict(), state["student"]
    for key in (*ours, *theirs):
        if key not in ours or key not in theirs or ours[key].shape != theirs[key].shape:
            raise FileError(
                "resume",
                str(path),
                f"does not fit the network at {key}",
                "build the network as it was, or start over without resume",
            )
    try:
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise FileError(
            "resume",
            str(path),
            "was made with other trainable parameters",
            "freeze the same layers, or start over without resume",
        ) from error
    scheduler.load_state_dict(state["scheduler"])
    student.load_state_dict(theirs)
    return applied


def stamp(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes a file from its replacement; None without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_EPOCH = re.compile(r"epoch-(\d+)\.pt")


def parse_every(every: str | int | None) -> tuple[float | None, int | None]:
    """Return seconds or batches between two checkpoints, both None for none between epochs.

    Args:
        every: "90s", "10min", "1.5h", or a number of batches.

    Raises:
        BinarizeError: It is neither.
    """
    if every is None:
        return None, None
    if isinstance(every, str) and every.isdecimal():
        every = int(every)
    if isinstance(every, int) and not isinstance(every, bool) and every > 0:
        return None, every
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(s|min|h)", str(every))
    if found is None or float(found[1]) == 0:
        raise BinarizeError(
            "save_every", every, "is neither a time nor a number of batches", "write e.g. '10min'"
        )
    return float(found[1]) * _UNITS[found[2]], None


class Saver:
    """Write the checkpoints of a training run.

    ``last.pt`` is the newest state, written after each epoch and optionally between steps;
    ``best.pt`` the network with the best validation metric; ``epoch-0012.pt`` and so on the newest
    epochs, if more than one is kept. All files are written atomically.

    Args:
        folder: Output folder; None writes nothing.
        accelerator: Gives access to the other processes.
        state: Returns settings, history, best and the student's weights.
        parts: Other state that a resumed run needs, by name.
        every: Seconds or batches between checkpoints within an epoch, see :func:`parse_every`.
        keep: How many epochs to keep.
    """

    def __init__(
        self,
        folder: Path | None,
        accelerator: Accelerator,
        state: Callable[[], dict[str, Any]],
        parts: Mapping[str, Callable[[], Any]],
        *,
        every: str | int | None = None,
        keep: int = 1,
    ) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.state = state
        self.parts = dict(parts)
        self.seconds, self.batches = parse_every(every)
        self.keep = keep
        self.mark = time.monotonic()
        self.passed = 0
        if folder is not None and folder.is_dir() and accelerator.is_main_process:
            for file in folder.glob(".*.pt.*.part"):  # left by a run that was killed while writing
                file.unlink(missing_ok=True)

    def after_update(self, batches: int, part: Mapping[str, Any], sums: Tensor) -> None:
        """Save between two steps, if it is time.

        Args:
            batches: Batches of this update.
            part: Progress within the epoch, as plain values.
            sums: This process's sums of losses.
        """
        if self.folder is None or not self._due(batches):
            return
        total = self.accelerator.reduce(sums.clone(), "sum")
        if self.accelerator.is_main_process:
            self._write(self.folder / "last.pt", {"part": {**part, "sums": total.tolist()}})
        self._restart()

    def _due(self, batches: int) -> bool:
        self.passed += batches
        if self.batches is not None:
            return self.passed >= self.batches
        if self.seconds is None:
            return False
        due = time.monotonic() - self.mark >= self.seconds
        if not is_distributed():
            return due
        # The first process's clock decides for all: they have to sum their losses together.
        flag = torch.tensor([int(due)], device=self.accelerator.device)
        torch.distributed.broadcast(flag, 0)
        return bool(flag.item())

    def _restart(self) -> None:
        self.mark, self.passed = time.monotonic(), 0

    def after_epoch(self, epoch: int, *, improved: bool, average: WeightAverage | None) -> None:
        """Save at the end of an epoch.

        Args:
            epoch: Its number, from 1.
            improved: It is the best so far.
            average: The running average of the weights, which is saved as the best.
        """
        if self.folder is None:
            return
        if self.accelerator.is_main_process:
            if improved:
                with applied(average):
                    write_checkpoint(self.folder / "best.pt", self.state())
            self._write(self.folder / "last.pt", {})
            self._keep(epoch)
        self.accelerator.wait_for_everyone()
        self._restart()

    def _write(self, path: Path, more: Mapping[str, Any]) -> None:
        parts = {name: give() for name, give in self.parts.items()}
        write_checkpoint(path, {**self.state(), **parts, **more})

    def _keep(self, epoch: int) -> None:
        """Keep the epoch's checkpoint and delete the oldest beyond the limit."""
        if self.keep < 2 or self.folder is None:
            return
        last, path = self.folder / "last.pt", self.folder / f"epoch-{epoch:04}.pt"
        try:
            with atomic_write(path) as temporary:
                temporary.unlink(missing_ok=True)
                try:
                    os.link(last, temporary)  # last.pt is replaced, never written to
                except OSError:
                    shutil.copyfile(last, temporary)
            for file in self.folder.iterdir():
                found = _EPOCH.fullmatch(file.name)
                if found is not None and int(found[1]) <= epoch - self.keep:
                    file.unlink()
        except OSError as error:
            raise FileError(
                "output_dir",
                str(self.folder),
                f"cannot keep {path.name} ({error.strerror})",
                "free some space or choose another folder",
            ) from error
