"""Match images with their label or depth maps by file name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from binarize.data.images import IMAGE_SUFFIXES, image_files
from binarize.errors import DataError

__all__ = ["paired"]


def paired(
    images: list[Path],
    maps: Path,
    argument: str,
    suffixes: Collection[str] = IMAGE_SUFFIXES,
    kind: str = "mask",
) -> list[tuple[Path, Path]]:
    """Pair each image with the map of the same stem.

    Args:
        images: Image files.
        maps: Folder of the maps.
        argument: Name of the caller's argument, for the message.
        suffixes: Allowed suffixes of the maps.
        kind: What to call a map in messages.

    Raises:
        DataError: The folder is missing, there is no image, or an image has no map or several.
    """
    if not images:
        raise DataError(argument, str(maps.parent), "has no images", "check the folder's layout")
    by_stem: dict[str, Path] = {}
    for file in image_files(maps, argument, suffixes):
        if by_stem.setdefault(file.stem, file) != file:
            other = by_stem[file.stem].name
            raise DataError(
                argument,
                str(maps),
                f"{other} and {file.name} have the same name",
                "remove one of them",
            )
    seen: dict[str, Path] = {}
    for image in images:
        if image.stem not in by_stem:
            raise DataError(
                argument,
                str(maps),
                f"image {image.name} has no {kind}",
                f"add {image.stem}.png there, or remove the image",
            )
        if seen.setdefault(image.stem, image) != image:
            raise DataError(
                argument,
                str(maps),
                f"images {seen[image.stem].name} and {image.name} would share one {kind}",
                "rename one of them",
            )
    return [(image, by_stem[image.stem]) for image in images]
