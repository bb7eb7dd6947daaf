"""Batches: loaders split over processes and seeded per sample, images, targets and outputs."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.data_loader import prepare_data_loader
from accelerate.state import PartialState
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, get_worker_info

from binarize.errors import BinarizeError, DataError, FileError, ModelError
from binarize.train.seeding import sample_seed, seeded

__all__ = [
    "LABELLED",
    "SeededSamples",
    "batch_image",
    "batch_pair",
    "batch_parts",
    "class_scores",
    "dense_channels",
    "dense_output",
    "each",
    "first_tensor",
    "open_loader",
    "read_batches",
    "reject_single_value",
    "resize_to",
    "target_size",
    "wide",
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


def each(function: Callable[..., Any], value: Any, *others: Any) -> Any:
    """Apply a function to a tensor, or to each tensor of a mapping.

    Args:
        function: Gets the tensor, and those of ``others`` under the same key.
        value: A tensor, or a mapping of tensors.
        *others: Further ones of the same form.
    """
    if isinstance(value, Mapping):
        return {k: each(function, v, *(other[k] for other in others)) for k, v in value.items()}
    return function(value, *others)


def first_tensor(value: Any) -> Tensor:
    """Return a tensor, or the first one of a mapping."""
    while isinstance(value, Mapping):
        value = next(iter(value.values()))
    found: Tensor = value
    return found


def batch_pair(batch: Any, key: str | tuple[str, ...]) -> tuple[Tensor, Any]:
    """Return images and targets of a batch: (image, target), or ``batch["image"], batch[key]``.

    Args:
        batch: The batch.
        key: Key of the target; for several, the targets are a mapping by key, and a batch that is
            a tuple has such a mapping in second place.

    Raises:
        DataError: One of them is missing, or the images are invalid.
    """
    if isinstance(key, tuple):
        image, targets = batch_image(batch), batch
        if isinstance(batch, Sequence):
            targets = batch[1] if len(batch) > 1 else None
            if not isinstance(targets, Mapping):
                raise DataError(
                    "batch",
                    type(batch).__name__,
                    f"has no mapping with {', '.join(key)}",
                    "give a dict with 'image' and these targets",
                )
        if isinstance(targets, Mapping):
            targets = {**targets, "image": image}
        return image, {name: batch_pair(targets, name)[1] for name in key}
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
    batch: Any, key: str | tuple[str, ...], *, taught: bool
) -> tuple[Tensor, Any, Tensor | None]:
    """Return images, targets (None without any) and which images have one (None: all).

    Args:
        batch: (image, target), or a mapping with "image" and ``key``. If it has "labelled" (N,),
            only the images where that is true have a target.
        key: Key of the target, or several, see :func:`batch_pair`.
        taught: There is a teacher, so images alone suffice.

    Raises:
        DataError: Something is missing, or the images are invalid.
    """
    keys = key if isinstance(key, tuple) else (key,)
    none = isinstance(batch, Mapping) and not any(name in batch for name in keys)
    alone = isinstance(batch, Tensor) or none
    if taught and (alone or (isinstance(batch, Sequence) and len(batch) == 1)):
        return batch_image(batch), None, None
    image, target = batch_pair(batch, key)
    labelled = batch.get(LABELLED) if isinstance(batch, Mapping) else None
    if labelled is None or bool(labelled.all()):
        return image, target, None
    if taught and not bool(labelled.any()):
        return image, None, None
    device = first_tensor(target).device
    return image, target, labelled.to(device=device, dtype=torch.bool)


def target_size(image: Tensor, target: Any) -> tuple[int, int]:
    """Return rows and columns of a (first) dense target, or of the images if there is none."""
    if isinstance(target, Mapping):
        target = next((one for one in target.values() if one.ndim >= 3), None)
    dense = image if target is None or target.ndim < 3 else target
    return (dense.shape[-2], dense.shape[-1])


def dense_channels(output: Any, count: int, rule: str) -> Tensor:
    """Return a dense output with a fixed number of channels.

    Args:
        output: What the network returned.
        count: The number of channels.
        rule: What needs them, for the message.

    Raises:
        ModelError: It has another number, or is no dense output.
    """
    dense = dense_output(output)
    if dense.shape[1] != count:
        raise ModelError(
            "output", tuple(dense.shape), rule, f"build the network with classes={count}"
        )
    return dense


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


_KEYS = ("out", "logits", "masks", "mask", "depth", "predicted_depth")


def dense_output(output: Any) -> Tensor:
    """Return the dense prediction (N, C, H, W) in a network's output.

    Args:
        output: The tensor itself, a list or tuple that starts with it (segmentation_models_pytorch
            with a classification head), or a mapping that holds it under one of ``out``,
            ``logits``, ``masks``, ``mask``, ``depth``, ``predicted_depth``, or as its first value
            (torchvision, transformers). A tensor (N, H, W) gets a channel dimension.

    Raises:
        ModelError: There is no such tensor.
    """
    found: Any = output
    if isinstance(found, Mapping):
        named = [found[key] for key in _KEYS if key in found]
        found = named[0] if named else next(iter(found.values()), None)
    elif isinstance(found, Sequence) and not isinstance(found, str):
        found = found[0] if found else None
    if isinstance(found, Tensor) and found.ndim == 3:
        found = found.unsqueeze(1)
    if not isinstance(found, Tensor) or found.ndim != 4:
        shown = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
        raise ModelError(
            "output",
            shown,
            "the network must return a tensor of shape (N, C, H, W)",
            "return it directly, first in a tuple, or under 'out' or 'logits'",
        )
    return found


def class_scores(output: Any) -> Tensor:
    """Return the logits (N, C) in a network's output.

    Args:
        output: The logits, a list or tuple that starts with them, or a mapping that holds them
            under ``logits`` or ``out``, or as its first value.

    Raises:
        ModelError: There is no such tensor.
    """
    found: Any = output
    if isinstance(found, Mapping):
        first = next(iter(found.values()), None)
        found = found.get("logits", found.get("out", first))
    elif isinstance(found, Sequence) and not isinstance(found, str):
        found = found[0] if found else None
    if not isinstance(found, Tensor) or found.ndim != 2:
        shown = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
        raise ModelError(
            "output",
            shown,
            "the network must return logits of shape (N, C)",
            "return them directly, first in a tuple, or under 'logits'",
        )
    return found


def resize_to(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, C, h, w) to ``size`` bilinearly if sizes differ, as float32 or better."""
    values = values.float() if values.element_size() < 4 else values
    if tuple(values.shape[-2:]) == tuple(size):
        return values
    return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)


def wide(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on Apple GPUs, which support nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


_KINDS = {kind.__name__: kind for kind in (DataError, FileError, ModelError)}


class Relayed(RuntimeError):
    """An error of this package crossing a worker process's border, which only passes text."""


class SeededSamples(Dataset[Any]):
    """A data set whose samples depend on (seed, epoch, index) only.

    Samples then do not depend on the number or persistence of workers, the number of processes or
    the reading order. ``set_epoch`` of a data set that has it is called in the workers too.

    Args:
        dataset: The data set, with ``__getitem__``.
        seed: Seed of the run.
        shared: Worker processes read it and need to know the epoch.
    """

    def __init__(self, dataset: Any, seed: int, *, shared: bool = False) -> None:
        self.dataset = dataset
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64)
        if shared:
            self._epoch.share_memory_()
        self._sent_epoch: int | None = None
        inner = dataset.dataset if isinstance(dataset, Subset) else dataset
        if callable(getattr(inner, "__getitems__", None)):
            # Reads whole batches at once: samples cannot be seeded individually.
            self.__getitems__ = self._read_many

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the samples read from now on."""
        self._epoch.fill_(epoch)
        self._send_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """Return one sample, under its own seed."""
        return self._read(index, self.dataset.__getitem__, index)

    def __getattr__(self, name: str) -> Any:
        """Forward attributes that a worker's set-up reads from the data set."""
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _read_many(self, indices: Any) -> Any:
        return self._read(tuple(indices), self.dataset.__getitems__, indices)

    def _read(self, key: Any, read: Any, index: Any) -> Any:
        epoch = int(self._epoch)
        self._send_epoch(epoch)
        try:
            with seeded(sample_seed(self.seed, epoch, key)):
                return read(index)
        except BinarizeError as error:
            if get_worker_info() is None:
                raise
            plain = error.value is None or isinstance(error.value, int | float)
            value = error.value if plain else str(error.value)
            parts = [error.argument, value, error.rule, error.remedy]
            raise Relayed(json.dumps([type(error).__name__, *parts])) from error

    def _send_epoch(self, epoch: int) -> None:
        if self._sent_epoch != epoch and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        self._sent_epoch = epoch


def open_loader(loader: Any, device: torch.device, seed: int, *, training: bool) -> Any:
    """Return this process's part of a loader, on its device.

    Args:
        loader: The user's loader; unchanged.
        device: The batches' device.
        seed: Seed of the samples' randomness.
        training: Fill up the last batches so that all processes have equally many; otherwise each
            sample is read exactly once.

    Returns:
        A loader with ``set_epoch``.
    """
    dataset = getattr(loader, "dataset", None)
    if dataset is not None and not isinstance(dataset, IterableDataset):
        workers = getattr(loader, "num_workers", 0)
        loader = copy.copy(loader)
        # Bypasses __setattr__, which would raise: nothing has been read through this copy yet.
        vars(loader)["dataset"] = SeededSamples(dataset, seed, shared=workers > 0)
    elif dataset is not None and hasattr(dataset, "dealt") and PartialState().num_processes > 1:
        loader = copy.copy(loader)
        vars(loader)["dataset"] = dataset.dealt()  # one process reads for all
    return prepare_data_loader(
        loader,
        device,
        put_on_device=True,
        rng_types=["generator"] if training else None,
        even_batches=training,
        non_blocking=True,
    )


def read_batches(loader: Any, argument: str, epoch: int) -> Iterator[Any]:
    """Iterate over a loader from :func:`open_loader`, with errors that name their source.

    Args:
        loader: The loader.
        argument: The user's name for it, for messages.
        epoch: Number of the epoch.

    Raises:
        BinarizeError: The data set raised an error, in a worker process or not; images of a batch
            differ in size; a worker failed or was killed.
    """
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)  # Accelerate would count from 0 even in a resumed run
    if isinstance(getattr(loader, "dataset", None), SeededSamples):
        loader.dataset.set_epoch(epoch)
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            explained = _explain(error, argument)
            if explained is None:
                raise
            raise explained from error
        yield batch


def _explain(error: Exception, argument: str) -> BinarizeError | None:
    text = str(error)
    if isinstance(error, Relayed):
        name, *parts = json.loads(text.strip().splitlines()[-1].partition(": ")[2])
        return _KINDS.get(name, BinarizeError)(*parts)
    # The second is the message of worker processes, which stack into shared memory.
    unequal = ("stack expects each tensor to be equal size", "resize storage that is not resizable")
    if any(words in text for words in unequal):
        sizes = text[text.index("got") :].split("\n")[0] if "got" in text else "several sizes"
        return DataError(
            argument,
            sizes,
            "all samples of a batch must have the same size",
            "give the data set a size, use batch_size=1, or a collate_fn that pads",
        )
    last = " ".join(text.strip().rpartition("\n")[2].split())[:200]
    raised = re.search(r"Caught (\w+) in DataLoader worker", text)
    if raised is not None:
        return DataError(
            "data",
            raised[1],
            f"the data set raised an error: {last}",
            "fix the data set; with num_workers=0 the traceback shows where",
        )
    if "DataLoader worker" in text:
        return DataError(
            argument,
            last,
            "a loader process failed",
            "if it ran out of memory, use fewer workers (num_workers)",
        )
    return None
