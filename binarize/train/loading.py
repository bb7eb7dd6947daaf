"""Data loaders for the trainer: split over processes, seeded per sample, with readable errors."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import Dataset, IterableDataset, Subset, get_worker_info

from binarize.errors import BinarizeError, DataError, FileError, ModelError
from binarize.train.seeding import sample_seed, seeded

__all__ = ["SeededSamples", "open_loader", "read_batches"]


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
