"""Edges between labels.

Shape legend: N samples, H, W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["label_edges"]


def label_edges(mask: Tensor, ignore_index: int = 255) -> Tensor:
    """Return where labels meet: 1 on pixels whose right or lower neighbour has another label.

    Edges are one pixel wide. Pixels that are ignored, and those next to them, are unknown.

    Args:
        mask: Labels, integers (..., H, W).
        ignore_index: Label of unknown pixels.

    Returns:
        0, 1 or ``ignore_index`` in the type and shape of the mask.
    """
    edge = torch.zeros_like(mask)
    void = mask == ignore_index
    unknown = void.clone()
    for dim in (-1, -2):
        size = mask.shape[dim] - 1
        if size < 1:
            continue
        here, there = mask.narrow(dim, 0, size), mask.narrow(dim, 1, size)
        edge.narrow(dim, 0, size).masked_fill_(here != there, 1)
        unknown.narrow(dim, 0, size).logical_or_(void.narrow(dim, 1, size))
        unknown.narrow(dim, 1, size).logical_or_(void.narrow(dim, 0, size))
    return edge.masked_fill(unknown, ignore_index)
