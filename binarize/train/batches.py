"""Take image and target out of a batch, and refuse what no network could train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from binarize.errors import DataError

__all__ = ["batch_image", "batch_pair", "refuse_single_value", "target_size"]


def batch_image(batch: Any) -> Tensor:
    """Return the images of a batch: a tensor, the first of a tuple, or ``batch["image"]``.

    Raises:
        DataError: There is no such tensor, or it is not a float tensor (N, C, H, W).
    """
    image: Any = batch
    if isinstance(batch, Mapping):
        image = batch.get("image")
    elif isinstance(batch, Sequence):
        image = batch[0] if batch else None
    if not isinstance(image, Tensor):
        raise DataError(
            "batch",
            type(batch).__name__,
            "has no images",
            "give a tensor, a tuple that starts with it, or a dict with 'image'",
        )
    if not image.is_floating_point():
        raise DataError(
            "image",
            str(image.dtype),
            "images must be floating point",
            "convert them with image.float() / 255 and normalise as the network expects",
        )
    if image.ndim != 4:
        raise DataError(
            "image", tuple(image.shape), "must have shape (N, C, H, W)", "add the batch dimension"
        )
    return image


def batch_pair(batch: Any, key: str) -> tuple[Tensor, Tensor]:
    """Return images and targets of a batch: (image, target), or ``batch["image"], batch[key]``.

    Raises:
        DataError: One of them is missing, or the images are unfit.
    """
    image = batch_image(batch)
    target: Any = None
    if isinstance(batch, Mapping):
        target = batch.get(key)
    elif isinstance(batch, Sequence) and len(batch) > 1:
        target = batch[1]
    if not isinstance(target, Tensor):
        raise DataError(
            "batch",
            type(batch).__name__,
            f"has no {key}",
            f"give a tuple (image, {key}) or a dict with 'image' and {key!r}",
        )
    return image, target


def target_size(image: Tensor, target: Tensor) -> tuple[int, int]:
    """Rows and columns of a dense target, or of the images where the target has none (labels)."""
    dense = target if target.ndim >= 3 else image
    return (dense.shape[-2], dense.shape[-1])


def refuse_single_value(error: ValueError, image: Tensor) -> None:
    """Tell the one bad choice of a batch size that torch reports from deep inside a network.

    Args:
        error: What the network raised.
        image: The images it was given.

    Raises:
        DataError: A BatchNorm had one value per channel to take statistics of.
    """
    if "more than 1 value per channel" in str(error):
        raise DataError(
            "batch size",
            image.shape[0],
            "a BatchNorm on a map of one pixel needs two images or more",
            "use larger batches, and drop_last=True in the loader",
        ) from error
