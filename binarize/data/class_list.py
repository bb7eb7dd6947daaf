"""Class names, and their colours in masks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from binarize.data.mask_coding import IGNORE, MaskCoding
from binarize.errors import DataError

__all__ = ["ClassList", "read_classes"]

_LINE = re.compile(r"(.*?)[\s,;:]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)$|(.*?)[\s,;:]+#([0-9a-fA-F]{6})$")
_VOID = ("void", "ignore", "ignored", "unlabeled", "unlabelled")

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set.

    Attributes:
        names: One for each class.
        colors: One RGB triple for each class, if masks are colours.
        void: Colours of pixels that are ignored.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...] | None = None
    void: tuple[Color, ...] = ()

    def coding(self) -> MaskCoding | None:
        """Return how masks encode the classes, if by colours."""
        if self.colors is None:
            return None
        labels = {_code(color): label for label, color in enumerate(self.colors)}
        return MaskCoding({**dict.fromkeys(map(_code, self.void), IGNORE), **labels}, by_color=True)


def read_classes(classes: int | Sequence[str] | None, root: Path) -> ClassList:
    """Return class names from a number, from names, or from ``root/classes.txt``.

    The file has one class per line: its name, and for coloured masks its colour as ``R G B`` or
    ``#RRGGBB``. A line named void or ignore has a colour that is ignored.

    Raises:
        DataError: None is given and there is no such file, the number is out of range, or the
            file is invalid.
    """
    listed = root / "classes.txt"
    made = _parse(listed) if listed.is_file() else None
    if classes is None:
        if made is None:
            raise DataError(
                "classes",
                None,
                f"{listed} does not exist",
                "give the number of classes, or write their names there, one per line",
            )
    elif isinstance(classes, int):
        if made is None or len(made.names) != classes:
            made = ClassList(tuple(f"class {i}" for i in range(classes)))
    else:
        made = ClassList(tuple(classes))
    if not 1 <= len(made.names) <= IGNORE:
        raise DataError(
            "classes", len(made.names), f"must be from 1 to {IGNORE}", "correct the number"
        )
    return made


def _parse(path: Path) -> ClassList:
    names: list[str] = []
    colors: list[Color] = []
    void: list[Color] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "classes", str(path), "cannot be read", "write one class name per line"
        ) from error
    for line in filter(None, map(str.strip, lines)):
        found = _LINE.fullmatch(line)
        if found is None:
            names.append(line)
            continue
        name = found[1] if found[5] is None else found[5]
        code = found[6]
        color = (
            (int(found[2]), int(found[3]), int(found[4]))
            if code is None
            else (int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16))
        )
        if max(color) > 255:
            raise DataError("classes", line, "a colour is three numbers up to 255", f"fix {path}")
        if name.lower() in _VOID:
            void.append(color)
        else:
            names.append(name)
            colors.append(color)
    if colors and len(colors) != len(names):
        rule = f"{len(colors)} of {len(names)} classes have a colour"
        raise DataError("classes", str(path), rule, "give all of them a colour, or none")
    if len(set(colors) | set(void)) != len(colors) + len(void):
        raise DataError("classes", str(path), "two lines have the same colour", "give each its own")
    return ClassList(tuple(names), tuple(colors) or None, tuple(void))


def _code(color: Color) -> int:
    return 65536 * color[0] + 256 * color[1] + color[2]
