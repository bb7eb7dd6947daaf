"""Augmentation of images together with their label and depth maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from binarize.data.images import resize_image, resize_map
from binarize.errors import DataError

__all__ = ["Augment", "Depth", "Normal", "RandomZoom"]


class Depth(tv_tensors.Mask):
    """A depth map in metres, (1, H, W) float32; transformed like a mask, and rescaled by zooms."""


class Normal(tv_tensors.Mask):
    """Surface normals (3, H, W) float32; transformed like a mask, but a flip turns them, too.

    A zoom changes the focal length, and not the directions in camera coordinates.
    """


def _flip_normal(normal: Tensor) -> Tensor:
    flipped = normal.as_subclass(Tensor).flip(-1)
    flipped[0].neg_()
    return tv_tensors.wrap(flipped, like=normal)


v2.functional.register_kernel(v2.functional.horizontal_flip, Normal)(_flip_normal)


class RandomZoom(v2.Transform):
    """Crop a window of the image's aspect ratio and resize it to ``size``.

    A window 1/z as wide shows everything z times larger, which under the same focal length is
    the same scene z times nearer: depth maps are divided by z (Eigen et al. 2014, section 3.4).

    Args:
        size: Rows and columns of the result.
        zoom: Smallest and largest z, at least 1; log-uniform in between.
    """

    _transformed_types = (tv_tensors.Image, tv_tensors.Mask)

    def __init__(self, size: tuple[int, int], zoom: tuple[float, float]) -> None:
        super().__init__()
        self.size = size
        self.zoom = zoom

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window: its corner, its size and the corresponding zoom."""
        rows, columns = flat_inputs[0].shape[-2:]
        low, high = math.log(self.zoom[0]), math.log(self.zoom[1])
        draw, top, left = torch.rand(3).tolist()
        zoom = math.exp(low + (high - low) * draw)
        height, width = max(1, round(rows / zoom)), max(1, round(columns / zoom))
        return {
            "top": int(top * (rows - height + 1)),
            "left": int(left * (columns - width + 1)),
            "height": height,
            "width": width,
            "zoom": rows / height,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the window to one tensor of the sample."""
        top, left = params["top"], params["left"]
        window = inpt.as_subclass(Tensor)[
            ..., top : top + params["height"], left : left + params["width"]
        ]
        if isinstance(inpt, tv_tensors.Image):
            return tv_tensors.wrap(resize_image(window, self.size), like=inpt)
        moved = resize_map(window, self.size)
        if isinstance(inpt, Depth):
            moved = moved / params["zoom"]
        return tv_tensors.wrap(moved, like=inpt)


@dataclass(frozen=True)
class Augment:
    """Random changes of a training sample, drawn from torch's global generator.

    Args:
        flip: Probability of a horizontal flip.
        zoom: Largest zoom; 1 turns it off. Windows are cropped from a stored image that is larger
            by this factor if the file has the pixels, so that a zoomed sample stays sharp.
        jitter: Strength of the colour jitter (brightness, contrast and saturation by a factor
            within 1 ± jitter, hue by a tenth of it); 0 turns it off.

    Raises:
        DataError: A value is outside its range.
    """

    flip: float = 0.5
    zoom: float = 1.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        """Reject values out of range."""
        for name, low, high in (("flip", 0.0, 1.0), ("zoom", 1.0, 8.0), ("jitter", 0.0, 1.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise DataError(
                    name, value, f"must be from {low:g} to {high:g}", "choose a value in range"
                )

    def build(self, size: tuple[int, int]) -> v2.Transform:
        """Return the transform to images of ``size`` (rows, columns)."""
        steps: list[v2.Transform] = []
        if self.zoom > 1:
            steps.append(RandomZoom(size, (1.0, self.zoom)))
        if self.flip > 0:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        if self.jitter > 0:
            amount = self.jitter
            steps.append(v2.ColorJitter(amount, amount, amount, min(0.5, amount / 10)))
        return v2.Compose(steps) if steps else v2.Identity()
