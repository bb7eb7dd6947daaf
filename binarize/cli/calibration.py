"""The images that ``binarize convert`` calibrates on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from binarize.errors import BinarizeError

if TYPE_CHECKING:
    from binarize.cli.sources import Source

__all__ = ["calibration_batches"]

_BATCH = 8


def calibration_batches(args: argparse.Namespace, source: Source) -> list[dict[str, Any]]:
    """Read images of a folder, evenly spaced, in batches.

    Args:
        args: Parsed options: ``calibrate``, ``images``, ``normalize`` and ``size``.
        source: The float network; its file may know the size and the normalisation.

    Raises:
        BinarizeError: The number or the size is missing or wrong.
        DataError: The folder has no images, or one cannot be read.
    """
    if args.images < 1:
        raise BinarizeError("images", args.images, "must be positive", "use 32 or so")
    size = args.size or source.size
    if size is None or len(size) != 2:
        raise BinarizeError(
            "size",
            None if size is None else "x".join(str(n) for n in reversed(size)),
            "--calibrate needs the width and height that images are resized to",
            "give e.g. --size 256x192",
        )
    from torch.utils.data import DataLoader, Subset

    from binarize.data import UnlabelledFolder

    known = source.settings.get("normalize")
    rows, columns = size
    data = UnlabelledFolder(
        args.calibrate,
        (rows, columns),
        normalize=args.normalize or known or "imagenet",
        bands=source.settings.get("bands"),
    )
    count = min(args.images, len(data))
    chosen = [number * len(data) // count for number in range(count)]
    return list(DataLoader(Subset(data, chosen), batch_size=_BATCH))
