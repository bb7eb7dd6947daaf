"""Write and read the training state, so that a killed run resumes as if nothing had happened."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from binarize.errors import FileError
from binarize.writing import atomic_write

__all__ = ["read_checkpoint", "write_checkpoint"]

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
