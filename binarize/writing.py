"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

__all__ = ["filling", "replacing"]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under another name, and give it its own name when it is on the disk.

    A reader finds the old file or the new one, and after an error there is nothing but the old
    one, even if the machine stops in the middle.

    Args:
        path: The file; where it is a link, what it links to is replaced.

    Yields:
        The name to write to, in the same folder.

    Raises:
        OSError: The file cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def filling(folder: Path, names: Collection[str]) -> Iterator[Path]:
    """Write files that belong together, which appear in their folder when all are written.

    Args:
        folder: Where to; it is made, parents included, if it is not there. Other files in it stay.
        names: All names that such files may have: those in the folder that are not written anew
            are old, and removed.

    Yields:
        A folder to write to.

    Raises:
        OSError: A file cannot be written.
    """
    target = Path(os.path.realpath(folder))
    exists = target.is_dir()
    # Inside of a folder that is there: it may be the only place that can be written to.
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
            os.replace(file, target / file.name)
        for name in set(names) - {file.name for file in written}:
            (target / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
