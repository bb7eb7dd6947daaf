"""Check and translate label maps."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from binarize.data.images import read_map
from binarize.data.mask_coding import IGNORE
from binarize.errors import DataError

__all__ = ["label_map", "label_table"]


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
    labels = read_map(path)
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
