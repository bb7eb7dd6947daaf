"""Read a data set once, in parallel, and count what is in it and what is wrong.

Shape legend: H, W rows and columns of an image.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from binarize.data.decoding import decode
from binarize.data.dense import IGNORE, DenseDataset
from binarize.data.mask_coding import read_codes
from binarize.errors import DataError

__all__ = ["DepthFacts", "Problem", "SplitFacts", "check_split_files", "label_values"]

KINDS = ("unreadable", "pair", "label", "depth", "class", "other")
"""Kinds of problems, in the order in which they are shown."""

_BITS = {"1": 1, "I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16, "I": 32, "F": 32}


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        kind: One of :data:`KINDS`.
        text: One line with the file, what is wrong and what to do.
        files: The sample's files, as far as it is about one.
    """

    kind: str
    text: str
    files: tuple[Path, ...] = ()

    @classmethod
    def of(cls, error: DataError, files: Iterable[Path] = (), *, pairing: bool = False) -> Problem:
        """Return the problem that an error names.

        Args:
            error: The error.
            files: The sample's files, as far as it is about one.
            pairing: The error was raised while images and targets were matched.
        """
        kinds = {"file": "unreadable", "label": "label", "color": "label", "depth": "depth"}
        kind = kinds.get(error.argument, "other")
        if error.rule.startswith("its size") or (pairing and kind != "unreadable"):
            kind = "pair"
        return cls(kind, str(error), tuple(files))


@dataclass
class DepthFacts:
    """Depth of a split, in metres.

    Attributes:
        nearest: Smallest known depth; None without any.
        farthest: Largest known depth.
        pixels: All pixels.
        unknown: Pixels without depth.
        beyond: Pixels beyond the largest depth that counts.
    """

    nearest: float | None = None
    farthest: float | None = None
    pixels: int = 0
    unknown: int = 0
    beyond: int = 0

    @classmethod
    def of(cls, depth: Tensor, largest: float) -> DepthFacts:
        """Return those of one depth map."""
        known = depth[depth > 0]
        low, high = torch.aminmax(known) if len(known) else (None, None)
        return cls(
            None if low is None else float(low),
            None if high is None else float(high),
            depth.numel(),
            depth.numel() - known.numel(),
            int((known > largest).sum()),
        )

    def add(self, other: DepthFacts) -> None:
        """Add those of another depth map."""
        nearest = [d for d in (self.nearest, other.nearest) if d is not None]
        farthest = [d for d in (self.farthest, other.farthest) if d is not None]
        self.nearest, self.farthest = min(nearest, default=None), max(farthest, default=None)
        self.pixels += other.pixels
        self.unknown += other.unknown
        self.beyond += other.beyond


@dataclass
class SplitFacts:
    """What one split of a data set holds.

    Attributes:
        split: Its name.
        images: Number of images.
        sizes: Images of each (width, height).
        files: For "image", "mask" and "depth": files of each format, mode and number of bits.
        orientations: Images of each EXIF orientation but 1.
        pixels: Pixels of each class; void is in ``ignored``.
        seen: Images that show each class.
        ignored: Pixels that are ignored.
        depth: Its depth, if there is any.
        problems: What is wrong.
    """

    split: str
    images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    files: dict[str, Counter[str]] = field(default_factory=dict)
    orientations: Counter[int] = field(default_factory=Counter)
    pixels: dict[str, int] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    ignored: int = 0
    depth: DepthFacts | None = None
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class _Sample:
    heads: tuple[tuple[str, str, tuple[int, int], int], ...]
    problems: tuple[Problem, ...]
    labels: Tensor | None = None
    depth: DepthFacts | None = None


def check_split_files(
    data: DenseDataset,
    split: str,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 0,
) -> SplitFacts:
    """Read every sample of a split once and count what is there.

    Args:
        data: The data set, not augmented.
        split: The split's name; in "train", every class must have a pixel.
        progress: Called with (samples done, total samples) after each one.
        workers: Threads; 0 takes one per processor core.
    """
    facts = SplitFacts(split, len(data))
    several = data.task == "multilabel"
    counts = torch.zeros(data.num_classes if several else 1, IGNORE + 1, dtype=torch.int64)
    images = torch.zeros_like(counts)
    if "depth" in data.keys:
        facts.depth = DepthFacts()
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for done, sample in enumerate(pool.map(lambda i: _read(data, i), range(len(data))), 1):
            facts.problems += sample.problems
            for key, kind, size, orientation in sample.heads:
                facts.files.setdefault(key, Counter())[kind] += 1
                if key == "image":
                    facts.sizes[size] += 1
                    if orientation != 1:
                        facts.orientations[orientation] += 1
            if sample.labels is not None:
                counts += sample.labels
                images += sample.labels > 0
            if sample.depth is not None and facts.depth is not None:
                facts.depth.add(sample.depth)
            if progress is not None:
                progress(done, len(data))
    if "mask" in data.keys:
        _name_labels(facts, data, counts, images)
        if split == "train" and not data.allow_empty:
            facts.problems += [
                Problem("class", f"no pixel is labelled {name!r}")
                for name, pixels in facts.pixels.items()
                if not pixels and name not in data.never_labelled
            ]
    depth = facts.depth
    if depth is not None and depth.pixels and depth.unknown + depth.beyond == depth.pixels:
        text = f"no depth is from 0 to {data.max_depth:g} m"
        facts.problems.append(Problem("depth", text))
    return facts


def label_values(masks: Iterable[Path], workers: int = 0) -> set[int]:
    """Return the values that occur in mask files; those that cannot be read are passed over."""

    def values(path: Path) -> set[int]:
        try:
            return set(np.unique(read_codes(path)).tolist())
        except DataError:
            return set()

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        return set().union(*pool.map(values, masks))


def _name_labels(facts: SplitFacts, data: DenseDataset, counts: Tensor, images: Tensor) -> None:
    names = data.classes
    if data.task == "multilabel":
        facts.pixels = dict(zip(names, counts[:, 1].tolist(), strict=True))
        facts.seen = dict(zip(names, images[:, 1].tolist(), strict=True))
        return
    names = names if len(names) > 1 else ("background", *names)
    facts.pixels = dict(zip(names, counts[0].tolist(), strict=False))
    facts.seen = dict(zip(names, images[0].tolist(), strict=False))
    facts.ignored = int(counts[0, IGNORE])


def _read(data: DenseDataset, index: int) -> _Sample:
    files = [(key, file) for key, found in data.files(index).items() for file in found]
    heads = tuple(head for head in (_head(key, file) for key, file in files) if head is not None)
    try:
        sample = data.read(index)
    except DataError as error:
        return _Sample(heads, tuple(_problems(error, [file for _, file in files])))
    except Exception as error:  # one odd file must not end the check of the others
        text = f"{', '.join(str(file) for _, file in files)}: {type(error).__name__}: {error}"
        return _Sample(heads, (Problem("other", text, tuple(file for _, file in files)),))
    labels, depth = None, None
    if "mask" in sample:
        mask = sample["mask"]
        channels = mask if data.task == "multilabel" else mask[None]
        labels = torch.stack([torch.bincount(c.flatten(), minlength=IGNORE + 1) for c in channels])
    if "depth" in sample:
        largest = float("inf") if data.max_depth is None else data.max_depth
        depth = DepthFacts.of(sample["depth"].float() * data.depth_scale, largest)
    return _Sample(heads, (), labels, depth)


def _problems(error: DataError, files: list[Path]) -> list[Problem]:
    """Return an error of one file, and those of the sample's other files that it hid."""
    found = [Problem.of(error, files)]
    for file in files:
        if str(file) == error.value or file.suffix in (".npy", ".mat", ".tif", ".tiff"):
            continue
        try:
            decode(file)
        except DataError as other:
            if str(other) != str(error):
                found.append(Problem.of(other, files))
    return found


def _head(key: str, path: Path) -> tuple[str, str, tuple[int, int], int] | None:
    """Return the kind of a file, its size (width, height) upright, and its orientation."""
    if path.suffix in (".npy", ".mat"):
        return key, path.suffix[1:], (0, 0), 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                orientation: Any = image.getexif().get(ExifTags.Base.Orientation, 1)
                width, height = image.size
                bits = _BITS.get(image.mode, 8)
                unit = "bit" if bits == 1 else "bits"
                kind = f"{image.format} {image.mode.partition(';')[0]} {bits} {unit}"
    except Exception:
        return _tiff_head(key, path)
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    valid = isinstance(orientation, int) and 1 <= orientation <= 8
    return key, kind, (width, height), orientation if valid else 1


def _tiff_head(key: str, path: Path) -> tuple[str, str, tuple[int, int], int] | None:
    """Return the same of bands that Pillow does not know; None if reading will say more."""
    if find_spec("tifffile") is None or path.suffix.lower() not in (".tif", ".tiff"):
        return None
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            sizes = dict(zip(series.axes, series.shape, strict=True))
            width, height = sizes.pop("X"), sizes.pop("Y")
            kind = f"TIFF {math.prod(sizes.values())} bands {8 * series.dtype.itemsize} bits"
            return key, kind, (width, height), 1
    except Exception:  # told by reading it
        return None
