"""Extract image and target from a batch, and reject what no network could train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from binarize.errors import DataError

__all__ = [
    "LABELLED",
    "batch_image",
    "batch_pair",
    "batch_parts",
    "reject_single_value",
    "target_size",
]

LABELLED = "labelled"
"""Batch key that says which images have a valid target."""


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
        DataError: One of them is missing, or the images are invalid.
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


def batch_parts(
    batch: Any, key: str, *, taught: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return images, targets (None without any) and which images have one (None: all).

    Args:
        batch: (image, target), or a mapping with "image" and ``key``. If it has "labelled" (N,),
            only the images where that is true have a target.
        key: Key of the target.
        taught: There is a teacher, so images alone suffice.

    Raises:
        DataError: Something is missing, or the images are invalid.
    """
    alone = isinstance(batch, Tensor) or (isinstance(batch, Mapping) and key not in batch)
    if taught and (alone or (isinstance(batch, Sequence) and len(batch) == 1)):
        return batch_image(batch), None, None
    image, target = batch_pair(batch, key)
    labelled = batch.get(LABELLED) if isinstance(batch, Mapping) else None
    if labelled is None or bool(labelled.all()):
        return image, target, None
    if taught and not bool(labelled.any()):
        return image, None, None
    return image, target, labelled.to(device=target.device, dtype=torch.bool)


def target_size(image: Tensor, target: Tensor | None) -> tuple[int, int]:
    """Return rows and columns of a dense target, or of the images if the target is a label."""
    dense = image if target is None or target.ndim < 3 else target
    return (dense.shape[-2], dense.shape[-1])


def reject_single_value(error: ValueError, image: Tensor) -> None:
    """Report the batch size that BatchNorm cannot train on, which torch reports from deep inside.

    Args:
        error: The network's error.
        image: Its input images.

    Raises:
        DataError: A BatchNorm had one value per channel to take statistics of.
    """
    if "more than 1 value per channel" in str(error):
        raise DataError(
            "batch size",
            image.shape[0],
            "a BatchNorm on a 1x1 feature map needs at least two images",
            "use larger batches, and drop_last=True in the loader",
        ) from error
