"""Find a checkpoint and restore the training state from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from binarize.errors import FileError
from binarize.train.run_settings import differences

__all__ = ["checkpoint_path", "reject_other_run", "restore", "stamp"]

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
