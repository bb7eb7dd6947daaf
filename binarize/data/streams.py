"""Streams of samples, for data sets that do not fit one disk: Hugging Face datasets, WebDataset.

Shape legend: H, W rows and columns of a sample.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from binarize.data.decoding import decode_bytes, rgb, upright
from binarize.data.dense import DenseDataset
from binarize.data.mask_coding import label_table, translate
from binarize.data.pairs import same_size
from binarize.errors import DataError

__all__ = ["StreamDataset"]

Source = Iterable[Mapping[str, Any]]

_SHARED = (
    *("augment", "bands", "classes", "denormalize", "fit", "ignore_index", "keys", "max_depth"),
    *("normalize", "num_classes", "palette", "size", "task"),
)


class StreamDataset(IterableDataset[dict[str, Tensor]]):
    """Samples of any iterable of dicts, resized, augmented and normalised as data sets in files.

    The order depends on (``seed``, epoch) alone, and a sample's augmentation on its place in that
    order too, so that a resumed run continues with the same samples. In worker processes each
    worker prepares its part of the stream.

    WebDataset shuffles by the clock and by the number of passes so far, which no resumed run can
    repeat: give a function of the epoch that orders the shards, and ``shuffle`` here. Its workers
    read shards of their own; with ``workersplitter=None`` all read every shard and prepare a part
    of the samples, so that an epoch has each sample once.

    With several processes, ``Trainer`` reads the stream in one and deals out its samples. A source
    must then not be split by process as well (WebDataset: ``nodesplitter=None``).

    Args:
        source: Yields dicts: a Hugging Face ``datasets`` stream, a WebDataset pipeline, a list, or
            a function of the epoch that returns one. Its ``set_epoch`` is called, if it has that.
        count: Samples of an epoch, which the learning-rate schedule needs; what follows them is
            not read. None: all, and their number is unknown.
        names: What the source calls "image", "mask" and "depth", as far as it differs, such as
            ``{"image": "jpg", "mask": "seg.png"}``. Values are PIL images, file contents as bytes
            (also as ``{"bytes": ...}``), arrays (H, W, 3) and (H, W), or uint8 tensors (3, H, W)
            and (H, W). Leave WebDataset's files undecoded: it makes masks RGB.
        size: Rows and columns; None keeps each image's own.
        task: "segmentation" or "depth".
        classes: Names of the classes, or their number; masks hold their indices, and 255 for
            unknown.
        void: Further labels to ignore.
        max_depth: Largest depth in metres.
        depth_scale: Metres per unit of the depth maps.
        shuffle: Samples held to draw from; 0 keeps the source's order.
        seed: Seed of the order and the augmentation.
        divided: Whether the source gives each worker process a part of its own; None: a Hugging
            Face stream does, and a WebDataset pipeline with ``split_by_worker``. Each worker then
            prepares its share of ``count``, and starts over where its part is smaller.
        **options: ``augment``, ``normalize``, ``fit``, ``colors``; see
            :class:`~binarize.data.dense.DenseDataset`.

    Raises:
        DataError: An argument is out of range; on reading, a sample lacks a key, a value cannot be
            read, a label is not a class, or an image and its target differ in size.
    """

    def __init__(
        self,
        source: Source | Callable[[int], Source],
        count: int | None = None,
        *,
        names: Mapping[str, str] | None = None,
        size: tuple[int, int] | None = None,
        task: str = "segmentation",
        classes: int | Sequence[str] = (),
        void: Sequence[int] = (),
        max_depth: float | None = None,
        depth_scale: float = 1.0,
        shuffle: int = 0,
        seed: int = 0,
        divided: bool | None = None,
        **options: Any,
    ) -> None:
        for name, value in (("count", count), ("shuffle", shuffle)):
            if value is not None and value < (name == "count"):
                raise DataError(name, value, "is too small", "give a larger number")
        if task not in ("segmentation", "depth"):
            raise DataError("task", task, "unknown task", "use 'segmentation' or 'depth'")
        labels = [f"class {i}" for i in range(classes)] if isinstance(classes, int) else classes
        if task == "segmentation" and not labels:
            raise DataError("classes", None, "are needed for the masks", "give their number")
        self.source = source
        self.count = count
        self.names = dict(names or {})
        self.shuffle = shuffle
        self.seed = seed
        self.divided = divided
        self._table = label_table(max(2, len(labels)), tuple(void))
        self._frame = DenseDataset(
            1,
            size=size,
            task=task,
            classes=labels,
            max_depth=10.0 if task == "depth" and max_depth is None else max_depth,
            depth_scale=depth_scale,
            cache=False,
            **options,
        )
        self._dealt = False
        # Shared with persistent workers, which do not see attributes that change later.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __getattr__(self, name: str) -> Any:
        """Return what trainers ask data sets for, such as ``classes``."""
        if name in _SHARED and "_frame" in vars(self):
            return getattr(self._frame, name)
        raise AttributeError(name)

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""
        if self.count is None:
            raise TypeError("the stream's count is unknown: give count=")
        return self.count

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the samples read from now on."""
        self._epoch.fill_(epoch)

    def dealt(self) -> StreamDataset:
        """Return the same stream for a reader that deals samples out to processes.

        On reading, it rejects a source that keeps a part of the samples for each process: the
        other parts would never be read.
        """
        made = copy.copy(self)
        made._dealt = True
        return made

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield the samples of this worker."""
        epoch, worker = int(self._epoch), get_worker_info()
        parts, part = (1, 0) if worker is None else (worker.num_workers, worker.id)
        source = self._opened(epoch)
        divided = _divides(source) if self.divided is None else self.divided
        limit = self.count
        samples = self._ordered(source, epoch)
        if divided and limit is not None:
            limit = limit // parts + (part < limit % parts)
            samples = self._repeated(samples, epoch)
        for place, raw in enumerate(itertools.islice(samples, limit)):
            if not divided and place % parts != part:
                continue
            number = place * parts + part if divided else place
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_mixed(self.seed, epoch, number))
                sample = self._frame.prepare(self._sample(raw, place))
            yield sample

    def _opened(self, epoch: int) -> Source:
        source: Any = self.source
        if callable(source) and not hasattr(source, "__iter__"):
            source = source(epoch)
        elif hasattr(source, "set_epoch"):
            source.set_epoch(epoch)
        if self._dealt:
            _reject_split(source)
        opened: Source = source
        return opened

    def _repeated(
        self, samples: Iterator[Mapping[str, Any]], epoch: int
    ) -> Iterator[Mapping[str, Any]]:
        """Yield samples, and start over at their end, unless there was none."""
        while True:
            empty = True
            for raw in samples:
                empty = False
                yield raw
            if empty:
                return
            samples = self._ordered(self._opened(epoch), epoch)

    def _ordered(self, source: Source, epoch: int) -> Iterator[Mapping[str, Any]]:
        if not self.shuffle:
            yield from source
            return
        chance = np.random.default_rng((self.seed, epoch))
        held: list[Mapping[str, Any]] = []
        for raw in source:
            if len(held) < self.shuffle:
                held.append(raw)
                continue
            place = int(chance.integers(len(held)))
            held[place], raw = raw, held[place]
            yield raw
        yield from (held[place] for place in chance.permutation(len(held)))

    def _sample(self, raw: Mapping[str, Any], place: int) -> dict[str, Tensor]:
        where = Path(f"sample {place}")
        image = _image(self._value(raw, "image", place), where)
        sample = {"image": image}
        if "mask" in self._frame.keys:
            labels = _map(self._value(raw, "mask", place), where, "mask")
            sample["mask"] = translate(labels.to(torch.int64), self._table, where)
            same_size(image, labels, where, "masks")
        if "depth" in self._frame.keys:
            depth = _map(self._value(raw, "depth", place), where, "depth").float()
            sample["depth"] = torch.nan_to_num(depth, 0.0, 0.0, 0.0).unsqueeze(0)
            same_size(image, depth, where, "depth")
        return sample

    def _value(self, raw: Mapping[str, Any], key: str, place: int) -> Any:
        name = self.names.get(key, key)
        if raw.get(name) is None:
            known = ", ".join(str(one) for one in raw) or "nothing"
            raise DataError(
                "source",
                f"sample {place}",
                f"has no {name!r}, but {known}",
                f"name it: names={{{key!r}: ...}}",
            )
        return raw[name]


def _divides(source: Any) -> bool:
    """Return whether a source gives each worker process a part of its own."""
    if hasattr(source, "num_shards") or hasattr(source, "n_shards"):  # Hugging Face
        return True
    stages = getattr(source, "pipeline", ())  # WebDataset
    return any(getattr(stage, "__name__", "") == "split_by_worker" for stage in stages)


def _reject_split(source: Any) -> None:
    """Reject a source that gives each process a part of its own.

    Raises:
        DataError: It does.
    """
    stages = (getattr(stage, "__name__", "") for stage in getattr(source, "pipeline", ()))
    split = next((name for name in stages if name in ("single_node_only", "split_by_node")), None)
    remedy = "open it with nodesplitter=None"
    if getattr(source, "_distributed", None) is not None:  # Hugging Face
        split, remedy = "split_dataset_by_node", "give the whole data set"
    if split is not None:
        rule = "splits the source by process, and so does the trainer"
        raise DataError("source", split, rule, remedy)


def _mixed(*numbers: int) -> int:
    """Return one seed for several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _decoded(value: Any, where: Path) -> Any:
    """Return a PIL image, an array or a tensor."""
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        value = value["bytes"]
    if isinstance(value, bytes):
        return decode_bytes(value, where)
    if isinstance(value, Image.Image):
        value.load()
        return upright(value)
    return value


def _image(value: Any, where: Path) -> Tensor:
    value = _decoded(value, where)
    if isinstance(value, Image.Image):
        return torch.from_numpy(rgb(value, where)).permute(2, 0, 1)
    if isinstance(value, np.ndarray):
        if value.ndim == 2:
            value = np.repeat(value[..., None], 3, axis=2)
        value = torch.from_numpy(np.ascontiguousarray(value))
        value = value.permute(2, 0, 1) if value.ndim == 3 else value
    if not isinstance(value, Tensor) or value.dtype != torch.uint8 or value.shape[:-2] != (3,):
        shape = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise DataError(
            "image",
            shape or type(value).__name__,
            f"of {where} is not an RGB image",
            "give a PIL image, bytes, a uint8 array (H, W, 3) or a uint8 tensor (3, H, W)",
        )
    return value


def _map(value: Any, where: Path, kind: str) -> Tensor:
    value = _decoded(value, where)
    if isinstance(value, Image.Image):
        value = np.array(value)
    if isinstance(value, np.ndarray):
        if value.dtype == np.uint16:
            value = value.astype(np.int32)
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor) and value.ndim == 3 and 1 in (value.shape[0], value.shape[-1]):
        value = value.squeeze(0) if value.shape[0] == 1 else value.squeeze(-1)
    if not isinstance(value, Tensor) or value.ndim != 2:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise DataError(
            kind,
            shape,
            f"of {where} is not one number per pixel",
            "give (H, W), an image of one channel, or the file's bytes undecoded",
        )
    if kind == "mask" and value.is_floating_point():
        raise DataError(
            kind, str(value.dtype), f"of {where} is not of integers", "give class indices"
        )
    return value
