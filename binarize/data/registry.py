"""Data sets by name, for the command line."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from binarize.data.class_list import read_classes
from binarize.data.dense import DenseDataset, band_options
from binarize.data.image_depth_folder import ImageDepthFolder
from binarize.data.image_mask_folder import ImageMaskFolder
from binarize.data.images import folder, image_files
from binarize.data.sets.ade20k import ADE20K
from binarize.data.sets.camvid import CamVid
from binarize.data.sets.cityscapes import Cityscapes
from binarize.data.sets.depth_lists import find_list, lists_of
from binarize.data.sets.kitti import KITTI
from binarize.data.sets.kitti import STEMS as KITTI_STEMS
from binarize.data.sets.nyuv2 import NYUv2
from binarize.data.sets.nyuv2_lists import STEMS, NYUv2Lists
from binarize.data.sets.scenes import Scenes
from binarize.data.sets.voc2012 import VOC2012
from binarize.errors import DataError

__all__ = ["dataset_names", "dataset_splits", "open_dataset"]

_SPLITS = ("train", "val", "test")


def _scenes(root: None, split: str, size: tuple[int, int] | None, **options: Any) -> Scenes:
    if split not in _SPLITS:
        raise DataError("split", split, "unknown split", f"use one of {', '.join(_SPLITS)}")
    options.setdefault("count", 256 if split == "train" else 64)
    options.setdefault("seed", _SPLITS.index(split))
    return Scenes(size=size or (96, 128), **options)


def _folder(
    root: str | Path, split: str, size: tuple[int, int] | None, **options: Any
) -> DenseDataset:
    if split not in _SPLITS:
        raise DataError("split", split, "unknown split", f"use one of {', '.join(_SPLITS)}")
    top = folder(root, "root")
    base = top / split if (top / split).is_dir() else top
    if base == top and split != "train":
        raise DataError(
            "split",
            split,
            f"{top} has no folder {split}",
            "create it, or use split='train' for the images at the top",
        )
    if options.get("bands") is not None:
        # All splits are normalised as the training split is.
        places = [place / "images" for place in (top / "train", top, base)]
        train = next((place for place in places if place.is_dir()), places[-1])
        band_options(options, image_files(train, "images"))
    if options.get("task") == "depth":
        unknown = {"classes", "mask_values", "mask_ignore"} & options.keys()
        for name in unknown:
            options.pop(name)
        return ImageDepthFolder(base / "images", base / "depth", size, **options)
    for name in ("depth_scale", "max_depth"):
        options.pop(name, None)
    classes = options.pop("classes", None)
    listed = read_classes(classes, top)
    if listed.colors is not None and options.get("task") != "multilabel":
        options["coding"] = listed.coding()
        options.setdefault("colors", listed.colors)
    elif options.get("task") != "multilabel" and max(2, len(listed.names)) == 2:
        # The coding is detected over all splits together: a single one may lack a class.
        every = [_masks(place) for place in (top, *(top / name for name in _SPLITS))]
        options["survey"] = [
            file for place in every if place.is_dir() for file in image_files(place, "masks")
        ]
    return ImageMaskFolder(base / "images", _masks(base), size, classes=listed.names, **options)


def _masks(base: Path) -> Path:
    masks = base / "masks"
    return base / "labels" if not masks.is_dir() and (base / "labels").is_dir() else masks


def _nyuv2(root: str | Path, split: str, *size: Any, **options: Any) -> DenseDataset:
    lists = options.get("lists")
    found = find_list(lists_of(root, lists)[1], STEMS, "train")
    # The labelled images have a train.txt too.
    if lists is not None or (found is not None and found.name != "train.txt"):
        return NYUv2Lists(root, split, *size, **options)
    options.pop("lists", None)
    return NYUv2(root, split, *size, **options)


_OPENERS: dict[str, Callable[..., DenseDataset]] = {
    "ade20k": ADE20K,
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "folder": _folder,
    "kitti": KITTI,
    "nyuv2": _nyuv2,
    "scenes": _scenes,
    "voc2012": VOC2012,
}
_TRAIN_VAL = ("ade20k", "cityscapes", "voc2012")


def dataset_names() -> tuple[str, ...]:
    """Return the names that :func:`open_dataset` accepts."""
    return tuple(_OPENERS)


def dataset_splits(
    name: str, root: str | Path | None = None, lists: str | Path | None = None
) -> tuple[str, ...]:
    """Return the splits of a data set that have images of their own, "train" first.

    Args:
        name: One of :func:`dataset_names`.
        root: Its folder.
        lists: Folder of its lists, if it has any.

    Raises:
        DataError: The folder is missing.
    """
    if name in _TRAIN_VAL:
        return ("train", "val")
    if name == "nyuv2":
        return ("train", "test")
    if name == "kitti" and root is not None:
        _, places = lists_of(root, lists)
        found = [one for one in _SPLITS[1:] if find_list(places, KITTI_STEMS, one) is not None]
        return ("train", *found)
    if name == "folder" and root is not None:
        top = Path(root).expanduser()
        return ("train", *(one for one in _SPLITS[1:] if (top / one).is_dir()))
    return _SPLITS


def open_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    split: str = "train",
    size: tuple[int, int] | str | None = None,
    task: str | None = None,
    **options: Any,
) -> DenseDataset:
    """Open a data set by name.

    Args:
        name: One of :func:`dataset_names`.
        root: Its folder; not for "scenes". "nyuv2" is the labelled images, or the frames of lists
            where the folder has such or ``lists`` is given. "folder" expects ``images`` and
            ``masks`` (or ``labels``; for depth ``depth``) there, or the same inside a folder named
            after the split; ``classes.txt`` at the top can name the classes.
        split: "train", "val" or "test".
        size: Rows and columns; None takes the data set's default, "original" keeps each image's own
            (for batches, see :class:`PadCollate`).
        task: "segmentation", "multilabel", "depth", or None for the data set's default.
        **options: Arguments of the data set's class, such as ``augment``, ``normalize``,
            ``cache``, ``fit``, ``bands``, ``classes``, ``mask_values``, ``depth_scale`` ("folder"),
            ``lists`` ("kitti", "nyuv2"), ``sbd`` ("voc2012"), ``count`` and ``seed`` ("scenes").

    Returns:
        The data set, with ``classes``, ``num_classes``, ``ignore_index``, ``max_depth`` and
        ``palette``.

    Raises:
        DataError: The name is unknown, the folder is missing, or an argument is invalid.
    """
    if name not in _OPENERS:
        near = difflib.get_close_matches(name, _OPENERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(_OPENERS)}"
        raise DataError("data", name, "unknown data set", hint)
    if root is None and name != "scenes":
        raise DataError("root", None, f"{name!r} is read from a folder", "give its path")
    if task is not None:
        options["task"] = task
    if size is None:
        return _OPENERS[name](root, split, **_default_size(name), **options)
    if size == "original":
        if name == "scenes":
            raise DataError(
                "size", size, "scenes have no size of their own", "give (rows, columns)"
            )
        return _OPENERS[name](root, split, None, **options)
    return _OPENERS[name](root, split, (int(size[0]), int(size[1])), **options)


def _default_size(name: str) -> dict[str, Any]:
    return {"size": None} if name in ("scenes", "folder") else {}
