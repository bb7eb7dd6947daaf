"""Atomic writes of files, folders and JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["atomic_write", "atomic_write_dir", "jsonable", "write_json"]

_TRIES, _PAUSE = 20, 0.05  # seconds


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name, and rename it once it is on the disk.

    Readers see the old file or the new one; after an error, or if the machine stops in the middle,
    only the old one is left.

    Args:
        path: The file; if it is a link, its target is replaced.

    Yields:
        The temporary name to write to, in the same folder.

    Raises:
        OSError: The file cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        _replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _replace(source: Path, target: Path) -> None:
    """Rename a file over another; on Windows wait until nobody reads that one."""
    for _ in range(_TRIES if sys.platform == "win32" else 0):
        with contextlib.suppress(PermissionError):
            os.replace(source, target)
            return
        time.sleep(_PAUSE)
    os.replace(source, target)


@contextlib.contextmanager
def atomic_write_dir(folder: Path, names: Collection[str]) -> Iterator[Path]:
    """Write files that belong together; they appear in their folder once all are written.

    Args:
        folder: The folder, created with its parents if needed. Other files in it are kept.
        names: All names that such files may have: existing ones that are not written again are
            outdated and removed.

    Yields:
        The folder to write to.

    Raises:
        OSError: A file cannot be written.
    """
    target = Path(os.path.realpath(folder))
    exists = target.is_dir()
    # Inside an existing folder: it may be the only writable place.
    temporary = (target if exists else target.parent) / (
        f".{target.name}.{secrets.token_hex(4)}.part"
    )
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if not exists:
            os.replace(temporary, target)
            return
        written = sorted(temporary.iterdir())
        for file in written:
            _replace(file, target / file.name)
        for name in set(names) - {file.name for file in written}:
            (target / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, record: Any) -> None:
    """Write a JSON file atomically; NaN and infinity become null.

    Args:
        path: The file; an existing one is replaced.
        record: Mappings, sequences, paths and plain values.

    Raises:
        OSError: It cannot be written.
    """
    text = json.dumps(jsonable(record), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def jsonable(value: Any) -> Any:
    """Convert a value to JSON types; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return str(value)
