"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

__all__ = ["replacing"]


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
