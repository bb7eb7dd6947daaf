"""File names of predictions, which never overwrite inputs."""

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
    """Choose the result files of each image before anything is written.

    Args:
        images: The image files.
        folder: Output folder.
        kinds: Kinds of results, with the suffix that each adds to the image's name.
        others: Names of other output files.
        inputs: Other input files.

    Returns:
        For each image, the files by kind.

    Raises:
        DataError: Two results would have the same name.
        FileError: A result would overwrite an input file, under any of its names.
    """
    read = {}
    for path in (*images, *inputs):
        status = os.stat(path)
        read[status.st_dev, status.st_ino] = path
    # Case-folded, for file systems that ignore case.
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
            status = os.stat(file)  # follows links to the file that would be overwritten
        except OSError:
            continue
        hit = read.get((status.st_dev, status.st_ino))
        if hit is not None:
            raise FileError(
                "output",
                str(folder),
                f"the result {file.name} would overwrite the input {hit}",
                "choose another folder",
            )
    return planned
