"""Match pictures with their maps by file name."""

from __future__ import annotations

from pathlib import Path

from binarize.data.images import image_files
from binarize.errors import DataError

__all__ = ["paired"]


def paired(images: list[Path], masks: Path, argument: str) -> list[tuple[Path, Path]]:
    """Pair each picture with the map of the same stem.

    Args:
        images: Picture files.
        masks: Folder of the maps.
        argument: Name of the caller's argument, for the message.

    Raises:
        DataError: The folder is missing, there is no picture, or a picture has no map.
    """
    by_stem = {file.stem: file for file in image_files(masks, argument)}
    if not images:
        raise DataError(argument, str(masks.parent), "has no images", "check the folder's layout")
    for image in images:
        if image.stem not in by_stem:
            raise DataError(
                argument,
                str(masks),
                f"image {image.name} has no mask",
                f"add {image.stem}.png there, or remove the image",
            )
    return [(image, by_stem[image.stem]) for image in images]
