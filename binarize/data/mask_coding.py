"""How mask files encode labels, by values or colours.

Masks in practice hold class indices, 0 and 255, any two values, palettes or colours. All of these
are codes, one integer per pixel (a colour is 65536·R + 256·G + B), and a table maps codes to
labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from binarize.data.decoding import decode
from binarize.data.images import read_map
from binarize.data.pairs import reject
from binarize.errors import DataError

__all__ = [
    "IGNORE",
    "MaskCoding",
    "find_coding",
    "histogram",
    "index_coding",
    "label_map",
    "label_table",
    "translate",
]

IGNORE = 255
"""Label of pixels that neither losses nor metrics count."""

_CHANNELS = {"RGB": 3, "RGBA": 4, "LA": 2}


@dataclass(frozen=True)
class MaskCoding:
    """A table from codes to labels.

    Attributes:
        labels: Label of each code; other codes are rejected.
        by_color: Whether codes are colours, including palette colours.
        found: Whether the codes were detected in the files and not specified.
    """

    labels: Mapping[int, int]
    by_color: bool = False
    found: bool = False

    def read(self, path: Path) -> Tensor:
        """Read a mask file.

        Returns:
            uint8 tensor (H, W) of labels.

        Raises:
            DataError: It is missing, damaged, not of integers, or has a code without a label.
        """
        codes = read_codes(path, by_color=self.by_color)
        known, labels = self._table()
        place = np.searchsorted(known, codes).clip(max=len(known) - 1)
        unknown = known[place] != codes
        if unknown.any():
            code = int(codes[unknown].max())
            if self.by_color:
                raise DataError(
                    "color",
                    _rgb(code),
                    f"in {path}, but no class has this colour",
                    "add it to classes.txt (as void to ignore it)",
                )
            classes = [value for value, label in sorted(self.labels.items()) if label != IGNORE]
            void = [str(value) for value, label in sorted(self.labels.items()) if label == IGNORE]
            consecutive = classes == list(range(len(classes)))
            shown = f"0..{len(classes) - 1}" if consecutive else ", ".join(map(str, classes))
            raise DataError(
                "label",
                code,
                f"{path} has a label outside {shown} and {', '.join(void)} (ignored)"
                if void
                else f"{path} has a label outside {shown}",
                "map it to a class or to the ignored label, or raise the number of classes",
            )
        return torch.from_numpy(labels[place])

    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        codes = sorted(self.labels)
        return np.array(codes), np.array([self.labels[code] for code in codes], np.uint8)


def index_coding(labels: int) -> MaskCoding:
    """Return the coding of masks that hold the labels 0 .. ``labels`` − 1, and 255 for unknown."""
    return MaskCoding({**{i: i for i in range(labels)}, IGNORE: IGNORE})


def find_coding(masks: Iterable[Path], labels: int) -> MaskCoding:
    """Detect how masks encode two labels: as 0 and 1, or as two other values.

    If 1 occurs, masks hold class indices and 255 is ignored. If only two values occur in
    all masks, such as 0 and 255, the smaller one is class 0. With more labels, masks hold indices.

    Args:
        masks: All mask files, including those of other splits, which share the coding.
        labels: Number of labels.

    Raises:
        DataError: More than two values occur and none of them is 1; a file is damaged.
    """
    if labels != 2:
        return index_coding(labels)
    counts: Counter[int] = Counter()
    for path in masks:
        try:
            codes, pixels = np.unique(read_codes(path), return_counts=True)
        except DataError as error:
            reject(error)
            continue
        counts.update(dict(zip(codes.tolist(), pixels.tolist(), strict=True)))
        if 1 in counts:
            return index_coding(labels)
    values = sorted(counts)
    if len(values) < 2:
        return index_coding(labels)
    if len(values) > 2:
        raise DataError(
            "masks",
            histogram(counts),
            f"hold {len(values)} values for two classes",
            "specify the classes with --mask-values A,B (mask_values=), and values to ignore with "
            "--mask-ignore C",
        )
    return MaskCoding({values[0]: 0, values[1]: 1}, found=True)


def histogram(counts: Mapping[int, int], names: Sequence[str] = ()) -> str:
    """Format the share of pixels of each value, the most frequent first."""
    total = max(1, sum(counts.values()))
    shown = sorted(counts.items(), key=lambda item: -item[1])
    words = [
        f"{names[value] if value < len(names) else value}: {pixels / total:.1%}"
        for value, pixels in shown[:8]
    ]
    return ", ".join(words) + (", ..." if len(shown) > 8 else "")


def read_codes(path: Path, *, by_color: bool = False) -> np.ndarray:
    """Read the codes (H, W) of a mask file.

    Raises:
        DataError: It is missing or damaged, or does not hold one integer per pixel.
    """
    image = decode(path)
    if by_color and image.mode == "P":
        image = image.convert("RGB")
    if image.mode not in _CHANNELS and image.mode in ("F", "CMYK", "YCbCr", "LAB", "HSV", "PA"):
        kind = "floating-point numbers" if image.mode == "F" else f"{image.mode} colours"
        raise DataError(
            "file",
            str(path),
            f"a mask needs one integer per pixel, this file has {kind}",
            "save it as a grey or palette PNG of class indices",
        )
    array = np.array(image)
    if image.mode in ("RGBA", "LA"):
        if (array[..., -1] != 255).any():
            raise DataError(
                "file", str(path), "a mask cannot have transparent pixels", "save it without alpha"
            )
        array = array[..., :-1]
    if array.ndim == 2:
        return array.astype(np.int64)
    if by_color and array.shape[-1] == 3:
        return array.astype(np.int64) @ np.array([65536, 256, 1])
    if array.shape[-1] == 3 and (array != array[..., :1]).any():
        colors, pixels = np.unique(array.reshape(-1, 3), axis=0, return_counts=True)
        shown = [tuple(colors[i].tolist()) for i in pixels.argsort()[::-1][:6]]
        raise DataError(
            "file",
            str(path),
            "a mask needs one number per pixel, this file has 3 channels; its colours are "
            f"{', '.join(map(str, shown))}{', ...' if len(colors) > 6 else ''}",
            "write each class's colour into classes.txt (NAME R G B), or save a grey or palette "
            "PNG of class indices",
        )
    return array[..., 0].astype(np.int64)


def _rgb(code: int) -> tuple[int, int, int]:
    return code >> 16, code >> 8 & 255, code & 255


def label_table(classes: int, void: tuple[int, ...] = ()) -> Tensor:
    """Return a table that keeps the labels 0 .. classes - 1 and maps ``void`` to the ignored label.

    Returns:
        int16 tensor of 256 entries, -1 where a label is not allowed.
    """
    table = torch.full((256,), -1, dtype=torch.int16)
    table[:classes] = torch.arange(classes, dtype=torch.int16)
    for value in (*void, IGNORE):
        table[value] = IGNORE
    return table


def label_map(path: Path, table: Tensor) -> Tensor:
    """Read a label map and translate it by a table of 256 entries.

    Args:
        path: The file.
        table: New label of each old one, -1 where a label is not allowed.

    Returns:
        uint8 tensor (H, W).

    Raises:
        DataError: The file is missing or unreadable, or has a label that is not allowed.
    """
    return translate(read_map(path), table, path)


def translate(labels: Tensor, table: Tensor, path: Path) -> Tensor:
    """Translate the labels (H, W) of a file by a table; see :func:`label_map`."""
    low, high = (int(value) for value in torch.aminmax(labels))
    bad = low if low < 0 else high if high > 255 else None
    translated = table[labels.long().clamp_(0, 255)]
    if bad is None and bool((translated < 0).any()):
        bad = int(labels[translated < 0].max())
    if bad is not None:
        allowed = int((table.ge(0) & table.ne(IGNORE)).nonzero().max())
        extra = [str(value) for value in (table == IGNORE).nonzero().flatten().tolist()]
        raise DataError(
            "label",
            bad,
            f"{path} has a label outside 0..{allowed} and {', '.join(extra)} (ignored)",
            "map it to a class or to the ignored label, or raise the number of classes",
        )
    return translated.to(torch.uint8)
