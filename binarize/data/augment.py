"""Augmentation of images together with their label, depth and normal maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from binarize.data.images import resize_image, resize_map
from binarize.data.mask_coding import IGNORE
from binarize.errors import DataError

__all__ = [
    "BTS_INDOOR",
    "BTS_OUTDOOR",
    "Augment",
    "Depth",
    "Normal",
    "RandomTone",
    "RandomZoom",
    "window",
]


class Depth(tv_tensors.Mask):
    """A depth map in metres, (1, H, W) float32; transformed like a mask, and rescaled by zooms."""


class Normal(tv_tensors.Mask):
    """Surface normals (3, H, W) float32, 0 where unknown; flips and rotations turn them, too.

    A zoom changes the focal length, and not the directions in camera coordinates.
    """


def _flip_normal(normal: Tensor) -> Tensor:
    flipped = normal.as_subclass(Tensor).flip(-1)
    flipped[0].neg_()
    return tv_tensors.wrap(flipped, like=normal)


def _rotate_normal(normal: Tensor, angle: float, **_options: Any) -> Tensor:
    moved = v2.functional.rotate_mask(normal.as_subclass(Tensor), angle, fill=0)
    x, y, z = moved
    # Counter-clockwise as seen, with y pointing down.
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return tv_tensors.wrap(torch.stack((cos * x + sin * y, cos * y - sin * x, z)), like=normal)


v2.functional.register_kernel(v2.functional.horizontal_flip, Normal)(_flip_normal)
v2.functional.register_kernel(v2.functional.rotate, Normal)(_rotate_normal)


class RandomZoom(v2.Transform):
    """Crop a window and resize it to ``size``.

    A window 1/z as wide shows everything z times larger, which under the same focal length is
    the same scene z times nearer: depth maps are divided by z (Eigen et al. 2014, section 3.4).
    A window beyond the image (z < 1) is filled with the mean colour, with ignored labels and with
    unknown depth.

    Args:
        size: Rows and columns of the result.
        zoom: Smallest and largest z; log-uniform in between.
        keep_aspect: With z = 1 take the largest window of the aspect ratio of ``size``; otherwise
            the whole image.
        fill: Colour (one value per channel) outside of the image.
    """

    _transformed_types = (tv_tensors.Image, tv_tensors.Mask)

    def __init__(
        self,
        size: tuple[int, int],
        zoom: tuple[float, float],
        *,
        keep_aspect: bool = False,
        fill: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        super().__init__()
        self.size = size
        self.zoom = zoom
        self.keep_aspect = keep_aspect
        self.fill = fill

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the window: its corner, its size and the corresponding zoom."""
        rows, columns = flat_inputs[0].shape[-2:]
        base: tuple[float, float] = (rows, columns)
        if self.keep_aspect:
            part = min(rows / self.size[0], columns / self.size[1])
            base = (self.size[0] * part, self.size[1] * part)
        low, high = math.log(self.zoom[0]), math.log(self.zoom[1])
        draw, top, left = torch.rand(3).tolist()
        zoom = math.exp(low + (high - low) * draw)
        height, width = max(1, round(base[0] / zoom)), max(1, round(base[1] / zoom))
        return {
            "top": _corner(top, rows - height),
            "left": _corner(left, columns - width),
            "height": height,
            "width": width,
            "zoom": base[0] / height,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Apply the window to one tensor of the sample."""
        plain = inpt.as_subclass(Tensor)
        box = [params[name] for name in ("top", "left", "height", "width")]
        if isinstance(inpt, tv_tensors.Image):
            return tv_tensors.wrap(
                resize_image(window(plain, box, self.fill), self.size), like=inpt
            )
        outside = 0 if isinstance(inpt, Depth | Normal) else IGNORE
        moved = resize_map(window(plain, box, [outside]), self.size)
        if isinstance(inpt, Depth):
            moved = moved / params["zoom"]
        return tv_tensors.wrap(moved, like=inpt)


class RandomTone(v2.Transform):
    """Change gamma, brightness and colour balance of half of the images (Lee et al. 2019, BTS).

    y_k = clip(b · c_k · x_k^γ, 0, 1) for a channel k of values x from 0 to 1, with γ, b and each
    c_k drawn uniformly and independently from 1 ± ``gamma``, 1 ± ``brightness`` and 1 ± ``tint``.

    Args:
        gamma: Largest deviation of the exponent from 1.
        brightness: Largest deviation of the factor of all channels from 1.
        tint: Largest deviation of the factor of one channel from 1.
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, gamma: float, brightness: float, tint: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.brightness = brightness
        self.tint = tint

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the exponent, and the factor of each channel."""
        channels = flat_inputs[0].shape[-3]
        # All are drawn for each image: what follows does not depend on the outcome.
        chosen, gamma, brightness, *tints = torch.rand(3 + channels, dtype=torch.float64).tolist()
        if chosen < 0.5:
            return {"gamma": 1.0, "factors": None}
        factor = _near_one(brightness, self.brightness)
        factors = [factor * _near_one(tint, self.tint) for tint in tints]
        return {"gamma": _near_one(gamma, self.gamma), "factors": factors}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Change an image; uint8 is rounded."""
        if params["factors"] is None:
            return inpt
        plain = inpt.as_subclass(Tensor)
        largest = 1.0 if plain.is_floating_point() else 255.0
        factors = torch.tensor(params["factors"], dtype=torch.float32).view(-1, 1, 1)
        values = factors * (plain.float() / largest) ** params["gamma"]
        values = values.clamp(0, 1) * largest
        values = values if plain.is_floating_point() else values.round()
        return tv_tensors.wrap(values.to(plain.dtype), like=inpt)


def _near_one(draw: float, deviation: float) -> float:
    return 1 + (2 * draw - 1) * deviation


def window(values: Tensor, box: Sequence[int], fill: Sequence[float]) -> Tensor:
    """Return a window of (..., H, W), filled where it is beyond the image.

    Args:
        values: The image or map.
        box: Top, left, height and width; the corner may be negative.
        fill: One value, or one per channel of (C, H, W).
    """
    top, left, height, width = box
    inside = values[..., max(0, top) : top + height, max(0, left) : left + width]
    if inside.shape[-2:] == (height, width):
        return inside
    color = torch.tensor(fill, dtype=torch.float64).view(-1, 1, 1)
    color = color if values.is_floating_point() else color.round()
    canvas = values.new_empty((*values.shape[:-2], height, width))
    canvas[...] = color.to(values.dtype)
    row, column = max(0, -top), max(0, -left)
    canvas[..., row : row + inside.shape[-2], column : column + inside.shape[-1]] = inside
    return canvas


def _corner(draw: float, room: int) -> int:
    """Return where a window starts: negative where it is larger than the image."""
    return int(draw * (room + 1)) if room >= 0 else -int(draw * (1 - room))


@dataclass(frozen=True)
class Augment:
    """Random changes of a training sample, drawn from torch's global generator.

    Args:
        flip: Probability of a horizontal flip.
        zoom: Largest zoom; 1 turns it off. Windows are cropped from a stored image that is larger
            by this factor if the file has the pixels, so that a zoomed sample stays sharp.
        jitter: Strength of the colour jitter (brightness, contrast and saturation by a factor
            within 1 ± jitter, hue by a tenth of it); 0 turns it off.
        shrink: Smallest zoom, at most 1, which shows the image smaller and fills the rest.
        rotate: Largest rotation to either side, in degrees; 0 turns it off.
        gamma: Strength of :class:`RandomTone` in the exponent; these three apply to half of the
            samples together.
        brightness: Its strength in all channels.
        tint: Its strength in single channels.

    Raises:
        DataError: A value is outside its range.
    """

    flip: float = 0.5
    zoom: float = 1.0
    jitter: float = 0.0
    shrink: float = 1.0
    rotate: float = 0.0
    gamma: float = 0.0
    brightness: float = 0.0
    tint: float = 0.0

    def __post_init__(self) -> None:
        """Reject values out of range."""
        for name, low, high in (
            ("flip", 0.0, 1.0),
            ("zoom", 1.0, 8.0),
            ("jitter", 0.0, 1.0),
            ("shrink", 0.1, 1.0),
            ("rotate", 0.0, 180.0),
            ("gamma", 0.0, 0.9),
            ("brightness", 0.0, 1.0),
            ("tint", 0.0, 1.0),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise DataError(
                    name, value, f"must be from {low:g} to {high:g}", "choose a value in range"
                )

    @property
    def zooms(self) -> bool:
        """Return whether images are shown larger or smaller."""
        return self.zoom > 1 or self.shrink < 1

    @property
    def colors(self) -> str | None:
        """Return the name of a setting that changes the colours of RGB images, if one does."""
        names = ("jitter", "gamma", "brightness", "tint")
        return next((name for name in names if getattr(self, name) > 0), None)

    def build(
        self,
        size: tuple[int, int] | None,
        *,
        crop: bool = False,
        fill: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> v2.Transform:
        """Return the transform to images of ``size``.

        Args:
            size: Rows and columns; None keeps each image's own, without zoom.
            crop: Images keep their aspect ratio and are cut to ``size``, at a random place.
            fill: Colour (one value per channel) of what is beyond the image.
        """
        steps: list[v2.Transform] = []
        if self.rotate > 0:
            steps.append(_rotation(self.rotate, fill))
        if size is not None and (self.zooms or crop):
            zoom = (self.shrink, self.zoom)
            steps.append(RandomZoom(size, zoom, keep_aspect=crop, fill=fill))
        if self.flip > 0:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        if self.jitter > 0:
            amount = self.jitter
            steps.append(v2.ColorJitter(amount, amount, amount, min(0.5, amount / 10)))
        if max(self.gamma, self.brightness, self.tint) > 0:
            steps.append(RandomTone(self.gamma, self.brightness, self.tint))
        return v2.Compose(steps) if steps else v2.Identity()


BTS_OUTDOOR = Augment(rotate=1.0, gamma=0.1, brightness=0.1, tint=0.1)
"""BTS's augmentation (Lee et al. 2019) for KITTI, which the BiDense paper uses for depth."""
BTS_INDOOR = Augment(rotate=2.5, gamma=0.1, brightness=0.25, tint=0.1)
"""The same for NYUv2, stronger."""


def _rotation(degrees: float, fill: Sequence[float]) -> v2.Transform:
    return v2.RandomRotation(
        degrees,
        interpolation=v2.InterpolationMode.BILINEAR,  # masks and depth keep to the nearest pixel
        fill={tv_tensors.Image: list(fill), tv_tensors.Mask: IGNORE, Depth: 0, Normal: 0},
    )
