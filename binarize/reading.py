"""Reading results that were written as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from binarize.errors import FileError

__all__ = ["read_json"]

Result = TypeVar("Result")


def read_json(
    path: str | Path,
    build: Callable[[Any], Result],
    *,
    form: str | None = None,
    argument: str,
    what: str,
    remedy: str,
) -> Result:
    """Read a JSON file into an object.

    Args:
        path: The file.
        build: Makes the object of plain data.
        form: The entry ``"format"`` that the file must have, if any.
        argument: Name of the caller's argument, for the message.
        what: What the file should be, for the message.
        remedy: How to get such a file.

    Raises:
        FileError: It cannot be read, or is something else.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if form is not None and data["format"] != form:
            raise ValueError(data["format"])
        return build(data)
    except OSError as error:
        rule = f"cannot be read ({error.strerror or error})"
        raise FileError(argument, str(path), rule, remedy) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        rule = f"is not {what} ({type(error).__name__}: {error})"
        raise FileError(argument, str(path), rule, remedy) from error
