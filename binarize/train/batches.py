"""Take image and target out of a batch, and refuse what no network could train on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from binarize.errors import BinarizeError, DataError

__all__ = ["batch_image", "batch_pair", "refuse_single_value", "sound_batches"]


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


def sound_batches(loader: Any) -> Iterator[Any]:
    """Yield a loader's batches; what goes wrong in making them is the data's mistake.

    Raises:
        DataError: Images of one batch have different sizes, or the data set raised an error.
    """
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except BinarizeError:
            raise
        except Exception as error:
            text = str(error).strip()
            last = " ".join(text.rpartition("\n")[2].split())[:200]
            if "stack expects each tensor to be equal size" in text or "resize storage" in text:
                raise DataError(
                    "batch",
                    last.rpartition("Error: ")[2],
                    "samples of different sizes cannot be in one batch",
                    "resize them to one size, or use a batch size of 1",
                ) from error
            raise DataError(
                "data",
                type(error).__name__,
                f"the data set raised an error: {last}",
                "mend the data set; the traceback above tells where",
            ) from error
        yield batch


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
