"""Data loaders as the trainer reads them: shared out, seeded per sample, with readable errors."""

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
    """An error of this package on its way out of a worker process, which passes on text only."""


class SeededSamples(Dataset[Any]):
    """A data set whose samples draw their random numbers from (seed, epoch, index) alone.

    The number of workers, their persistence, the number of processes and the order of reading then
    change nothing about a sample. A data set with ``set_epoch`` is set in the workers as well.

    Args:
        dataset: The data set, with ``__getitem__``.
        seed: Seed of the run.
        shared: Worker processes read it, which have to learn of the epoch.
    """

    def __init__(self, dataset: Any, seed: int, *, shared: bool = False) -> None:
        self.dataset = dataset
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64)
        if shared:
            self._epoch.share_memory_()
        self._told: int | None = None
        inner = dataset.dataset if isinstance(dataset, Subset) else dataset
        if callable(getattr(inner, "__getitems__", None)):
            # Reads whole batches at once: its samples cannot be seeded one by one.
            self.__getitems__ = self._read_many

    def set_epoch(self, epoch: int) -> None:
        """Let the samples that are read from now on belong to an epoch."""
        self._epoch.fill_(epoch)
        self._tell(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """Return one sample, under its own seed."""
        return self._read(index, self.dataset.__getitem__, index)

    def __getattr__(self, name: str) -> Any:
        """Pass on what a worker's set-up asks the data set for."""
        if name.startswith("__") or name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _read_many(self, indices: Any) -> Any:
        return self._read(tuple(indices), self.dataset.__getitems__, indices)

    def _read(self, key: Any, read: Any, index: Any) -> Any:
        epoch = int(self._epoch)
        self._tell(epoch)
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

    def _tell(self, epoch: int) -> None:
        if self._told != epoch and hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        self._told = epoch


def open_loader(loader: Any, device: torch.device, seed: int, *, training: bool) -> Any:
    """This process's part of a loader, on its device.

    Args:
        loader: The user's loader; left alone.
        device: Where batches go.
        seed: Seed of what the samples draw.
        training: Fill up the last batches so that all processes have as many; otherwise each sample
            is read once.

    Returns:
        A loader with ``set_epoch``.
    """
    dataset = getattr(loader, "dataset", None)
    if dataset is not None and not isinstance(dataset, IterableDataset):
        workers = getattr(loader, "num_workers", 0)
        loader = copy.copy(loader)
        # Around __setattr__, which refuses: nothing has been read through this copy.
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
    """Iterate over a loader of :func:`open_loader`, with errors that tell whose they are.

    Args:
        loader: The loader.
        argument: The user's name for it, for messages.
        epoch: Number of the epoch.

    Raises:
        BinarizeError: What a data set raised, also in a worker process; images of a batch that
            differ in size; a worker that failed or was killed.
    """
    if hasattr(loader, "set_epoch"):
        loader.set_epoch(epoch)  # Accelerate would count from 0, whatever was resumed
    if isinstance(getattr(loader, "dataset", None), SeededSamples):
        loader.dataset.set_epoch(epoch)
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            told = _explain(error, argument)
            if told is None:
                raise
            raise told from error
        yield batch


def _explain(error: Exception, argument: str) -> BinarizeError | None:
    text = str(error)
    if isinstance(error, Relayed):
        name, *parts = json.loads(text.strip().splitlines()[-1].partition(": ")[2])
        return _KINDS.get(name, BinarizeError)(*parts)
    # The second is how worker processes, which stack into shared memory, come to say it.
    unequal = ("stack expects each tensor to be equal size", "resize storage that is not resizable")
    if any(words in text for words in unequal):
        sizes = text[text.index("got") :].split("\n")[0] if "got" in text else "several sizes"
        return DataError(
            argument,
            sizes,
            "the samples of a batch must have one size",
            "give the data set a size, use batch_size=1, or a collate_fn that pads",
        )
    last = " ".join(text.strip().rpartition("\n")[2].split())[:200]
    raised = re.search(r"Caught (\w+) in DataLoader worker", text)
    if raised is not None:
        return DataError(
            "data",
            raised[1],
            f"the data set raised an error: {last}",
            "with num_workers=0 the traceback shows where; mend the data set",
        )
    if "DataLoader worker" in text:
        return DataError(
            argument,
            last,
            "a loader process failed",
            "if it was killed for its memory, use fewer of them (num_workers)",
        )
    return None
