"""Base class of the data sets: cache, resize, augment, normalise.

Shape legend: H, W rows and columns of the requested size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from binarize.data.augment import BTS_OUTDOOR, Augment, Depth, Normal
from binarize.data.bands import MOST_BANDS, band_statistics, preview, read_bands
from binarize.data.edges import label_edges
from binarize.data.images import covering, read_image, resize_image, resize_map
from binarize.data.mask_coding import IGNORE, histogram
from binarize.data.palette import palette
from binarize.errors import DataError

__all__ = ["IGNORE", "IMAGENET", "DenseDataset", "normalisation"]

Stats = tuple[tuple[float, ...], tuple[float, ...]]

IMAGENET: Stats = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's RGB values in [0, 1]."""

_NAMED: dict[str, Stats] = {
    "imagenet": IMAGENET,
    "symmetric": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
FITS = ("resize", "crop")
_TARGETS: dict[str, frozenset[str]] = {
    "segmentation": frozenset({"mask"}),
    "multilabel": frozenset({"mask"}),
    "depth": frozenset({"depth"}),
    "normals": frozenset({"normal"}),
    "edges": frozenset({"mask", "edge"}),  # the borders of the labels
}


def _keys(task: str | None) -> frozenset[str]:
    """Return what samples hold.

    Raises:
        DataError: A task is unknown.
    """
    keys = {"image"}
    for name in ("segmentation", "depth") if task is None else task.split("+"):
        if name not in _TARGETS:
            names = ", ".join(repr(known) for known in _TARGETS)
            remedy = f"use {names}, several joined by '+', or None"
            raise DataError("task", task, "unknown task", remedy)
        keys |= _TARGETS[name]
    return frozenset(keys)


def normalisation(name: str | Stats, bands: int | None = None) -> Stats:
    """Return mean and deviation by name: "imagenet", "symmetric" ([-1, 1]) or "none" ([0, 1]).

    Args:
        name: The name, or mean and deviation of each channel.
        bands: Number of bands, if images are not RGB; then only "none" is a name.

    Raises:
        DataError: The name is not known, or the numbers are not those of the bands.
    """
    if not isinstance(name, str):
        if not isinstance(name, tuple | list) or len(name) != 2:
            rule = "must be a name, or mean and deviation"
            raise DataError("normalize", name, rule, "to leave images in [0, 1], give 'none'")
        if any(len(values) != (bands or 3) for values in name):
            rule = f"needs a mean and a deviation for each of {bands or 3} channels"
            raise DataError("normalize", name, rule, "give two lists of that length")
        return tuple(name[0]), tuple(name[1])
    if bands is not None and name == "none":
        return (0.0,) * bands, (1.0,) * bands
    if bands is not None:
        rule = "is for RGB images, and these have bands"
        raise DataError("normalize", name, rule, "omit it, give (mean, std), or 'none'")
    if name not in _NAMED:
        raise DataError(
            "normalize", name, "unknown normalisation", f"use one of {', '.join(sorted(_NAMED))}"
        )
    return _NAMED[name]


def band_options(options: dict[str, Any], files: Sequence[Path]) -> None:
    """Normalise bands by the statistics of ``files`` where ``options`` name nothing else.

    Args:
        options: Those of :class:`DenseDataset`, changed in place.
        files: Image files.

    Raises:
        DataError: The number of bands is out of range, or a file cannot be read.
    """
    bands = options.get("bands")
    if bands is None:
        return
    if not 1 <= bands <= MOST_BANDS:
        raise DataError("bands", bands, f"must be from 1 to {MOST_BANDS}", "correct the number")
    options.setdefault("normalize", None)
    if options["normalize"] is None:
        options["normalize"] = band_statistics(files, bands)


class DenseDataset(Dataset[dict[str, Tensor]]):
    """Images with a mask, a depth map or both, as dicts of tensors.

    A sub-class provides :meth:`read`. Everything after reading happens here: resizing (bilinear
    with antialiasing for images, nearest for targets), the cache, augmentation, normalisation.

    Items: ``image`` float32 (3, H, W), normalised; ``mask`` int64 (H, W) with ``ignore_index``
    where nothing is known; ``depth`` float32 (1, H, W) in metres, 0 where nothing is known;
    ``normal`` float32 (3, H, W), see :mod:`binarize.data.normals`; ``edge`` like ``mask``, see
    :mod:`binarize.data.edges`.

    Args:
        count: Number of samples, at least 1.
        size: Rows and columns; None keeps each image's own size, which batches of several images
            need :class:`~binarize.data.collate.PadCollate` for.
        fit: How images of another shape become ``size``: "resize" stretches them; "crop" scales
            them, keeping their aspect ratio, until they cover it, and cuts what is beyond (at a
            random place with ``augment``, else evenly on both sides).
        task: "segmentation", "depth", "normals" or "edges" for its target, "depth+normals" and so
            on for several; None: "segmentation+depth". "multilabel": ``mask`` is (C, H, W), 0 or 1
            for each class.
        classes: Names of the classes.
        max_depth: Largest depth in metres, or None without depth.
        depth_scale: Metres per unit of the depth map that :meth:`read` returns.
        augment: True for the default :class:`Augment`, False for none, "bts" for that of depth
            estimation (:data:`~binarize.data.augment.BTS_OUTDOOR`), or an object.
        normalize: Name or (mean, std) of the normalisation; see :func:`normalisation`.
        bands: Number of bands of images that are not 8-bit RGB. They are float32 with the files'
            values, and ``normalize`` is (mean, std) of each band in these units.
        cache: Keep resized samples in memory (uint8 images and labels). With worker
            processes call :meth:`preload` first, or every worker fills its own.
        colors: One RGB triple per class, for display; None derives them.
        allow_empty: Let :meth:`check_targets` pass where a class has no pixel.

    Raises:
        DataError: No sample, an unknown task or normalisation, a size without pixels.
    """

    classes: tuple[str, ...] = ()
    num_classes: int = 0
    bts = BTS_OUTDOOR
    never_labelled: tuple[str, ...] = ()
    """Classes whose pixels the data set does not tell from ignored ones."""

    def __init__(
        self,
        count: int,
        *,
        size: tuple[int, int] | None,
        fit: str = "resize",
        task: str | None = None,
        classes: Sequence[str] = (),
        max_depth: float | None = None,
        depth_scale: float = 1.0,
        augment: bool | str | Augment = False,
        normalize: str | Stats = "imagenet",
        bands: int | None = None,
        cache: bool = True,
        colors: Sequence[tuple[int, int, int]] | None = None,
        allow_empty: bool = False,
    ) -> None:
        keys = _keys(task)
        if count < 1:
            raise DataError("data set", count, "has no samples", "check the split and the folder")
        if size is not None and (len(size) != 2 or min(size) < 1):
            raise DataError(
                "size", size, "must be (rows, columns), both positive", "write e.g. (144, 192)"
            )
        if fit not in FITS:
            raise DataError("fit", fit, "unknown", f"use {' or '.join(map(repr, FITS))}")
        self.fit = fit
        self.task = task
        self.keys = keys
        self.allow_empty = allow_empty
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.classes = tuple(classes)
        self.num_classes = len(self.classes)
        self.ignore_index = IGNORE
        self.max_depth = max_depth
        colors = palette(self.num_classes) if colors is None else tuple(colors)
        if self.num_classes == 1 and len(colors) == 1:
            colors = ((0, 0, 0), *colors)  # label 0 is the background
        self.palette = colors
        self.bands = bands
        self.normalize = normalisation(normalize, bands)
        mean, std = self.normalize
        unit = 255 if bands is None else 1
        self._mean = torch.tensor(mean).mul(unit).view(-1, 1, 1)
        self._gain = torch.tensor(std).mul(unit).reciprocal().view(-1, 1, 1)
        self._count = count
        self.depth_scale = depth_scale
        self._cache: list[dict[str, Tensor] | None] | None = [None] * count if cache else None
        self.augment = self._augmentation(augment)
        self._transform = None
        if self.augment is not None:
            changed = self.augment.colors
            if bands is not None and changed is not None:
                rule = "colour changes are for RGB images"
                raise DataError(changed, getattr(self.augment, changed), rule, "use 0")
            if self.size is None and self.augment.zooms:
                raise DataError("size", None, "a zoom needs a size", "give (rows, columns)")
            fill = self._mean.flatten().tolist()
            self._transform = self.augment.build(self.size, crop=fit == "crop", fill=fill)

    def _augmentation(self, augment: bool | str | Augment) -> Augment | None:
        if isinstance(augment, str):
            if augment != "bts":
                raise DataError("augment", augment, "unknown", "use 'bts', True or an Augment")
            return self.bts
        return (Augment() if augment else None) if isinstance(augment, bool) else augment

    def read_image(self, path: Path) -> Tensor:
        """Read an image file: RGB, or its bands."""
        return read_image(path) if self.bands is None else read_bands(path, self.bands)

    def read(self, index: int) -> dict[str, Tensor]:
        """Read one sample at its own size.

        Returns:
            ``image`` uint8 (3, h, w), or float32 (bands, h, w), and if they are in ``self.keys``
            ``mask`` uint8 (h, w), ``depth`` (1, h, w) and ``normal`` float32 (3, h, w).
        """
        raise NotImplementedError

    def files(self, index: int) -> dict[str, list[Path]]:
        """Return the files that :meth:`read` reads a sample from, by key; none if it is drawn."""
        return {}

    def __len__(self) -> int:
        """Number of samples."""
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one sample, augmented and normalised."""
        return self._finished(self._stored(index))

    def prepare(self, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a sample of :meth:`read`'s form, resized, augmented and normalised."""
        return self._finished(self._fitted(sample))

    def _finished(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Augment and normalise a sample."""
        sample: dict[str, Any] = {"image": tv_tensors.Image(stored["image"])}
        if "mask" in stored:
            sample["mask"] = tv_tensors.Mask(stored["mask"])
        if "depth" in stored:
            sample["depth"] = Depth(stored["depth"].float() * self.depth_scale)
        if "normal" in stored:
            sample["normal"] = Normal(stored["normal"])
        if self._transform is not None:
            sample = self._transform(sample)
        plain = {key: value.as_subclass(Tensor) for key, value in sample.items()}
        # A new tensor each time: the cache must never be written to.
        plain["image"] = plain["image"].to(torch.float32, copy=True)
        plain["image"].sub_(self._mean).mul_(self._gain)
        if self.bands is not None:
            plain["image"].nan_to_num_(0.0)  # no data: the mean
        if "mask" in plain:
            plain["mask"] = plain["mask"].to(torch.int64)
        if "edge" in self.keys:
            plain["edge"] = label_edges(plain["mask"], self.ignore_index)
        return plain

    def preload(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Fill the cache now, so that worker processes inherit it instead of filling their own.

        Args:
            progress: Called with (samples done, total samples) after each one.
        """
        for index in range(self._count):
            self._stored(index)
            if progress is not None:
                progress(index + 1, self._count)

    def cache_bytes(self) -> int:
        """Return the memory that all cached samples take, judged by the first one; 0 without."""
        if self._cache is None:
            return 0
        return self._count * sum(value.nbytes for value in self._stored(0).values())

    def drop_cache(self) -> None:
        """Read samples on demand from now on."""
        self._cache = None

    def class_counts(self) -> Tensor:
        """Count the pixels of each class over the whole set, without augmentation.

        Returns:
            int64 tensor of ``num_classes`` entries, or of two with one class (the background
            first); ignored pixels are not counted.

        Raises:
            DataError: The data set has no label maps (its task is depth).
        """
        counts = self._label_counts()
        if self.task == "multilabel":
            return counts[:, 1]
        return counts[: max(2, self.num_classes)]

    def check_targets(self) -> None:
        """Reject targets that nothing can be learned from.

        Reads samples, spread over the set, until every class or a depth in range is there: all
        of them only where something is rare or missing.

        Raises:
            DataError: A class has no labelled pixel, all pixels are ignored, or no depth is
                between 0 and ``max_depth``.
        """
        if "mask" in self.keys and self.classes and not self.allow_empty:
            self._check_labels()
        if "depth" in self.keys and self.max_depth is not None:
            self._check_depth(self.max_depth)

    def _spread(self) -> Iterator[int]:
        """All indices, from the start spread over the set: similar samples are often neighbours."""
        step = max(1, round(0.618 * self._count))
        while math.gcd(step, self._count) > 1:
            step += 1
        return (index * step % self._count for index in range(self._count))

    def _label_counts(self, *, until_all: bool = False) -> Tensor:
        """Pixels of each of the 256 labels, for each class of its own if there are several.

        Args:
            until_all: Stop as soon as every class has a pixel.
        """
        if "mask" not in self.keys or not self.classes:
            raise DataError("task", "depth", "there are no labels", "open it for segmentation")
        several = self.task == "multilabel"
        counts = torch.zeros(self.num_classes if several else 1, IGNORE + 1, dtype=torch.int64)
        needed = counts[:, 1] if several else counts[0, : max(2, self.num_classes)]
        for index in self._spread():
            mask = self._stored(index)["mask"]
            for channel, values in enumerate(mask if several else mask[None]):
                counts[channel] += torch.bincount(values.flatten(), minlength=IGNORE + 1)
            if until_all and int((needed == 0).sum()) <= len(self.never_labelled):
                break
        return counts if several else counts[0]

    def _check_labels(self) -> None:
        counts = self._label_counts(until_all=True)
        names = self.classes
        if self.task == "multilabel":
            missing = [n for n, row in zip(names, counts, strict=True) if not row[1]]
            counted = {i: int(row[1]) for i, row in enumerate(counts)}
        else:
            names = names if len(names) > 1 else ("background", *names)
            zipped = zip(names, counts, strict=False)
            missing = [n for n, pixels in zipped if not pixels and n not in self.never_labelled]
            counted = {i: int(pixels) for i, pixels in enumerate(counts) if pixels}
            names = (*names, *(str(i) for i in range(len(names), IGNORE)), "ignored")
        if len(missing) == 0:
            return
        rule = f"no pixel is labelled {missing[0]!r}"
        if len(missing) > 1:
            rule += f", nor {', '.join(repr(name) for name in missing[1:4])}"
            rule += ", ..." if len(missing) > 4 else ""
        if not any(pixels for label, pixels in counted.items() if label != IGNORE):
            rule = "all pixels are ignored"
        raise DataError(
            "masks",
            histogram(counted, names),
            rule,
            "check the mask values (--mask-values) and the number of classes; if a class is "
            "missing on purpose, allow it (--allow-empty-classes, allow_empty=True)",
        )

    def _check_depth(self, largest: float) -> None:
        outside = []
        for index in self._spread():
            depth = self._stored(index)["depth"].float() * self.depth_scale
            if bool(((depth > 0) & (depth <= largest)).any()):
                return
            outside.append(depth[depth > 0])
        known = torch.cat(outside)
        rule = "no pixel has a known depth"
        if len(known):
            sample = known[:: max(1, len(known) // 100_000)]
            low, middle, high = sample.quantile(torch.tensor([0.0, 0.5, 1.0])).tolist()
            rule = (
                f"no depth is from 0 to {largest:g} m: they are {low:.4g} to {high:.4g} m, "
                f"median {middle:.4g}"
            )
        raise DataError(
            "depth",
            f"{len(known)} known pixels",
            rule,
            "check the unit (--depth-scale, metres per unit) and the largest depth (--max-depth)",
        )

    def denormalize(self, image: Tensor) -> Tensor:
        """Convert normalised images (..., C, H, W) back to uint8 RGB; of bands, the first three."""
        if self.bands is not None:
            return preview(image)
        shown = image.detach().cpu().float() / self._gain + self._mean
        return shown.round_().clamp_(0, 255).to(torch.uint8)

    def _stored(self, index: int) -> dict[str, Tensor]:
        if not -self._count <= index < self._count:
            raise IndexError(f"index {index} of {self._count} samples")
        index %= self._count
        if self._cache is None:
            return self._fitted(self.read(index))
        held = self._cache[index]
        if held is None:
            held = self._cache[index] = self._fitted(self.read(index))
        return held

    def _fitted(self, sample: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Bring a sample to the size in which it is kept."""
        rows, columns = sample["image"].shape[-2:]
        size, crop = self._stored_size(rows, columns)
        stored = {}
        for key in sample.keys() & self.keys:
            value = (resize_image if key == "image" else resize_map)(sample[key], size)
            if crop is not None:
                value = value[..., crop[0], crop[1]]
            stored[key] = value.contiguous()
        return stored

    def _stored_size(
        self, rows: int, columns: int
    ) -> tuple[tuple[int, int], tuple[slice, slice] | None]:
        """Return the size in which an image is kept, and what is then cut out of it."""
        if self.size is None:
            return (rows, columns), None
        size = self.size
        # Limited to the file's pixels: a zoom cannot show more detail.
        zoom = 1.0 if self.augment is None else self.augment.zoom
        zoom = max(1.0, min(zoom, rows / size[0], columns / size[1]))
        if self.fit == "resize":
            return (round(size[0] * zoom), round(size[1] * zoom)), None
        larger = (round(size[0] * zoom), round(size[1] * zoom))
        shape = covering(rows, columns, larger, multiple=1)
        if self.augment is not None:  # the random window is drawn later
            return shape, None
        top, left = ((shape[i] - size[i]) // 2 for i in (0, 1))
        return shape, (slice(top, top + size[0]), slice(left, left + size[1]))
