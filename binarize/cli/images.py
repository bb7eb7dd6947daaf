"""Images as inputs, and predictions as images: coloured label maps and depth maps.

Shape legend: H, W rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.errors import DataError, FileError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

__all__ = [
    "as_input",
    "beside",
    "depth_image",
    "find_images",
    "label_image",
    "legend",
    "overlaid",
    "save_image",
]

Colors = Sequence[Sequence[int]]


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
    """Return an image as a batch (1, 3, H, W) for the network.

    Args:
        image: uint8 (3, H, W).
        stats: Mean and standard deviation per channel, for values from 0 to 1.
    """
    import torch

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in stats)
    return ((image.float() / 255 - mean) / std)[None]


def label_image(labels: Tensor, colors: Colors) -> Image:
    """Return a label map as a palette image of class indices, shown in the classes' colours.

    Args:
        labels: Integers (H, W), 255 for unknown (shown black).
        colors: One RGB triple per class.
    """
    import torch
    from PIL import Image

    image = Image.fromarray(labels.to(torch.uint8).cpu().numpy())
    table = [int(value) for color in colors for value in color][:765]
    image.putpalette(table + [0] * (768 - len(table)))  # turns a grey image into a palette image
    return image


def overlaid(labels: Tensor, colors: Colors) -> Image:
    """Return multi-labels (C, H, W) of 0 and 1 as one image: the mean of their classes' colours."""
    import torch
    from PIL import Image

    table = torch.tensor([list(colors[i]) for i in range(len(labels))], dtype=torch.float32)
    mixed = torch.einsum("chw,cd->hwd", labels.cpu().float(), table)
    mixed = mixed / labels.cpu().sum(0).clamp(min=1)[..., None]
    return Image.fromarray(mixed.round().to(torch.uint8).numpy())


def depth_image(depth: Tensor, near: float, far: float) -> Image:
    """Return a depth map (H, W) in metres in colours, bright and warm where near."""
    from matplotlib import colormaps
    from PIL import Image

    share = ((depth.cpu() - near) / max(far - near, 1e-6)).clamp(0, 1)
    return Image.fromarray(colormaps["magma_r"](share.numpy(), bytes=True)[..., :3])


def beside(images: Sequence[Image], gap: int = 4) -> Image:
    """Place images of equal height side by side, on white."""
    from PIL import Image

    width = sum(image.width for image in images) + gap * (len(images) - 1)
    row = Image.new("RGB", (width, max(p.height for p in images)), "white")
    left = 0
    for image in images:
        row.paste(image.convert("RGB"), (left, 0))
        left += image.width + gap
    return row


def legend(names: Sequence[str], colors: Colors) -> Image:
    """Draw a legend of the classes' colours."""
    from PIL import Image, ImageDraw

    height, box = 18, 12
    sheet = Image.new("RGB", (220, height * len(names) + 6), "white")
    draw: Any = ImageDraw.Draw(sheet)
    for index, (name, color) in enumerate(zip(names, colors, strict=False)):
        top = 3 + index * height
        draw.rectangle((6, top + 3, 6 + box, top + 3 + box), fill=tuple(color))
        draw.text((26, top + 3), name, fill="black")
    return sheet


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
