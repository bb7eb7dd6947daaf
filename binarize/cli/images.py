"""Image files as inputs of a network, and results as image files.

Shape legend: H, W rows and columns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.errors import DataError, FileError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from binarize.cli.output import Output

__all__ = [
    "ImageInputs",
    "as_input",
    "check_image_options",
    "find_images",
    "open_images",
    "predict_heads",
    "read_input",
    "save_image",
    "shown",
]


@dataclass(frozen=True)
class ImageInputs:
    """Images by index: their names, and a function that returns each for display and as input."""

    names: Sequence[str]
    sample: Callable[[int], tuple[Tensor, Tensor]]


def check_image_options(args: argparse.Namespace) -> None:
    """Raise an error unless either ``--images`` or ``--data`` is given."""
    if bool(args.images) == (args.data is not None):
        raise DataError(
            "images",
            args.images,
            "give either images or a data set, not both",
            "give --images or --data",
        )


def open_images(
    args: argparse.Namespace,
    known: Mapping[str, Any],
    out: Output,
    paths: Sequence[Path] | None,
) -> ImageInputs:
    """Open image files, or the images of a data set.

    Args:
        args: Parsed options, with those of :func:`binarize.cli.datasets.add_data_options`, and
            ``limit``.
        known: Settings that the network was trained with.
        out: The output, for notes.
        paths: Image files; ``None`` for those of ``--data``.
    """
    if paths is None:
        return _of_data_set(args, known, out)
    from binarize.data.dense import normalisation

    chosen = args.normalize or known.get("normalize") or "imagenet"
    stats = normalisation(chosen, known.get("bands"))
    shape = args.size or (tuple(known["size"]) if known.get("size") else None)

    def sample(number: int) -> tuple[Tensor, Tensor]:
        image = _fitted(read_input(paths[number], known), shape, known)
        return _colors(image, stats), as_input(image, stats)

    return ImageInputs([path.name for path in paths], sample)


def _of_data_set(args: argparse.Namespace, known: Mapping[str, Any], out: Output) -> ImageInputs:
    from binarize.cli.datasets import held_out, open_data

    split, called = held_out(args, out)
    data = open_data(args, split, out, known=known, preload=False)

    def sample(number: int) -> tuple[Tensor, Tensor]:
        image = data[number]["image"]
        return data.denormalize(image), image[None]

    count = min(len(data), args.limit or len(data))
    return ImageInputs([f"{args.data} {called} {number}" for number in range(count)], sample)


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


def read_input(path: Path, known: Mapping[str, Any]) -> Tensor:
    """Read an image as a network expects it: uint8 (3, H, W), or its bands, float32 (C, H, W).

    Args:
        path: The file.
        known: Settings of the network's training.

    Raises:
        DataError: It cannot be read.
    """
    from binarize.data.bands import read_bands
    from binarize.data.images import read_image

    bands = known.get("bands")
    return read_image(path) if bands is None else read_bands(path, bands)


def shown(image: Tensor, stats: tuple[Sequence[float], Sequence[float]]) -> Image:
    """Return an image of :func:`read_input` to look at."""
    from PIL import Image as images

    return images.fromarray(_colors(image, stats).permute(1, 2, 0).contiguous().numpy())


def _colors(image: Tensor, stats: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    from binarize.data.bands import preview

    return preview(as_input(image, stats)[0]) if image.is_floating_point() else image


def _fitted(image: Tensor, shape: tuple[int, int] | None, known: Mapping[str, Any]) -> Tensor:
    """Resize an image as in the network's training; nothing is cut off."""
    from binarize.data.images import covering, resize_image

    if shape is None:
        return image
    rows, columns = image.shape[-2:]
    whole = known.get("fit") == "crop"
    return resize_image(image, covering(rows, columns, shape) if whole else shape)


def predict_heads(
    network: Any,
    task: Any,
    image: Tensor,
    stats: tuple[Sequence[float], Sequence[float]],
    shape: tuple[int, int] | None,
    known: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Run a network on an image, and return the decoded predictions (..., H, W) by head.

    Args:
        network: The network.
        task: Its task; the head of a single one is "".
        image: The image.
        stats: As for :func:`as_input`.
        shape: Rows and columns of the network's input; None: the image's.
        known: Settings of the network's training.

    Raises:
        ModelError: The network does not accept the image, or lacks a head.
    """
    import torch

    from binarize.cli.start import try_out
    from binarize.data.collate import pad_to_multiple
    from binarize.train.tasks.multitask import heads

    rows, columns = image.shape[-2:]
    padded = shape is None and "size" in known  # trained on images of their own sizes
    batch = as_input(_fitted(image, shape, known), stats)
    if padded:
        batch = pad_to_multiple(batch)
    extent = (batch.shape[-2], batch.shape[-1]) if padded else (rows, columns)
    try_out(network, batch)
    with torch.no_grad():
        decoded = task.decode(network(batch), extent)
    return {
        head: (decoded[head] if head else decoded)[0][..., :rows, :columns] for head in heads(task)
    }


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
