"""Image files as inputs of a network, and results as image files.

Shape legend: H, W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from binarize.errors import DataError, FileError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = ["as_input", "find_images", "save_image"]


def find_images(given: Sequence[str]) -> list[Path]:
    """Return the image files given by name or folder, without duplicates.

    A file given by name may have any suffix, if its content starts like an image.

    Raises:
        DataError: There is no such file or folder, it is not an image, or the folder has none.
    """
    from binarize.data.decoding import is_image
    from binarize.data.images import IMAGE_SUFFIXES, image_files

    found: dict[Path, None] = {}
    for name in given:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = image_files(path, "images")
            if not inside:
                raise DataError("images", name, "the folder has no images", "check the path")
            found.update(dict.fromkeys(inside))
        elif not path.is_file():
            raise DataError("images", name, "no such file or folder", "check the path")
        elif path.suffix.lower() not in IMAGE_SUFFIXES and not is_image(path):
            raise DataError(
                "images", name, "is not an image", "give image files, or folders of them"
            )
        else:
            found[path] = None
    return list(found)


def as_input(image: Tensor, stats: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """Return an image as a batch (1, C, H, W) for the network.

    Args:
        image: uint8 (3, H, W), or bands in their own units, float32 (C, H, W).
        stats: Mean and standard deviation per channel, for values from 0 to 1 or in these units.
    """
    import torch

    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in stats)
    values = image if image.is_floating_point() else image.float() / 255
    return ((values - mean) / std).nan_to_num(0.0)[None]


def save_image(image: Image, path: Path) -> None:
    """Write a PNG file atomically.

    Raises:
        FileError: It cannot be written.
    """
    from binarize.writing import atomic_write

    try:
        with atomic_write(path) as temporary:
            image.save(temporary, format="PNG")
    except OSError as error:
        raise FileError(
            "output",
            str(path),
            f"cannot be written ({error.strerror or error})",
            "check permissions and free disk space",
        ) from error
