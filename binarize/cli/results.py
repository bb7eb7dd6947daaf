"""Where predictions are written, and that it costs nobody a file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from binarize.errors import DataError, FileError

__all__ = ["LEGEND", "plan_results"]

LEGEND = "legend.png"


def plan_results(
    images: Sequence[Path],
    folder: Path,
    kinds: Mapping[str, str],
    *,
    others: Iterable[str] = (),
    inputs: Iterable[Path] = (),
) -> list[dict[str, Path]]:
    """Name the result files of each image, before anything is written.

    Args:
        images: The image files.
        folder: Where the results go.
        kinds: What an image's results are, with what is added to its name for each.
        others: Names of further files that are written there.
        inputs: Further files that are read.

    Returns:
        For each image, the files by kind.

    Raises:
        DataError: Two results would have one name.
        FileError: A result would replace a file that is read, under whatever name.
    """
    read = {}
    for path in (*images, *inputs):
        status = os.stat(path)
        read[status.st_dev, status.st_ino] = path
    # Folded: where the names end up, capital letters may not count.
    taken: dict[str, Path | None] = {name.casefold(): None for name in others}
    planned = []
    for image in images:
        files = {kind: folder / f"{image.stem}{end}.png" for kind, end in kinds.items()}
        for file in files.values():
            other = taken.setdefault(file.name.casefold(), image)
            if other != image:
                rule = (
                    f"its result {file.name} would have the name of the legend"
                    if other is None
                    else f"has the same name as {other}, so would its result"
                )
                raise DataError("images", str(image), rule, "predict them into two folders")
        planned.append(files)
    for file in (*(folder / name for name in others), *(f for p in planned for f in p.values())):
        try:
            status = os.stat(file)  # through links: what would be written to
        except OSError:
            continue
        hit = read.get((status.st_dev, status.st_ino))
        if hit is not None:
            raise FileError(
                "output",
                str(folder),
                f"the result {file.name} would replace {hit}, which is read",
                "choose another folder",
            )
    return planned
