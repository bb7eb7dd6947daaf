"""Match images with their label or depth maps by file name."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from torch import Tensor

from binarize.data.images import IMAGE_SUFFIXES, image_files
from binarize.errors import DataError

__all__ = ["collecting", "paired", "reject", "same_size"]

_collected: ContextVar[list[DataError] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting() -> Iterator[list[DataError]]:
    """Collect what is wrong with single files while data sets are opened, instead of raising it.

    The data sets then lack these files.

    Yields:
        The list that grows.
    """
    found: list[DataError] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def reject(error: DataError) -> None:
    """Raise an error about a single file, or add it to those that :func:`collecting` yields.

    Raises:
        DataError: The error itself.
    """
    found = _collected.get()
    if found is None:
        raise error
    found.append(error)


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
        other = by_stem.setdefault(file.stem, file)
        if other != file:
            rule = f"{other.name} and {file.name} have the same name"
            reject(DataError(argument, str(maps), rule, "remove one of them"))
    seen: dict[str, Path] = {}
    for image in images:
        other = seen.setdefault(image.stem, image)
        if image.stem not in by_stem:
            reject(
                DataError(
                    argument,
                    str(maps),
                    f"image {image.name} has no {kind}",
                    f"add {image.stem}.png there, or remove the image",
                )
            )
        elif other != image:
            rule = f"images {other.name} and {image.name} would share one {kind}"
            reject(DataError(argument, str(maps), rule, "rename one of them"))
    if _collected.get() is not None:  # harmless in training, where such a map is never read
        for stem in sorted(by_stem.keys() - seen.keys()):
            rule = f"{kind} {by_stem[stem].name} has no image"
            reject(
                DataError(argument, str(maps), rule, f"add the image {stem}, or remove the {kind}")
            )
    return [(image, by_stem[stem]) for stem, image in seen.items() if stem in by_stem]


def same_size(image: Tensor, target: Tensor, path: Path, argument: str) -> None:
    """Reject a label or depth map of another size than its image.

    Args:
        image: (..., H, W).
        target: (..., H, W).
        path: The target's file.
        argument: Name of the caller's argument, for the message.

    Raises:
        DataError: The sizes differ.
    """
    if image.shape[-2:] != target.shape[-2:]:
        kind = "depth map" if argument == "depth" else "mask"
        raise DataError(
            argument,
            str(path),
            f"its size {tuple(target.shape[-2:])} is not the image's {tuple(image.shape[-2:])}",
            f"save the {kind} at the image's size",
        )
