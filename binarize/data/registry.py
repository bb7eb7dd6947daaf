"""Data sets by name, for the command line."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from binarize.data.camvid import CamVid
from binarize.data.class_list import read_classes
from binarize.data.dense import DenseDataset
from binarize.data.image_depth_folder import ImageDepthFolder
from binarize.data.image_mask_folder import ImageMaskFolder
from binarize.data.images import folder, image_files
from binarize.data.nyuv2 import NYUv2
from binarize.data.scenes import Scenes
from binarize.errors import DataError

__all__ = ["dataset_names", "open_dataset"]

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


_OPENERS: dict[str, Callable[..., DenseDataset]] = {
    "camvid": CamVid,
    "folder": _folder,
    "nyuv2": NYUv2,
    "scenes": _scenes,
}


def dataset_names() -> tuple[str, ...]:
    """Return the names that :func:`open_dataset` accepts."""
    return tuple(_OPENERS)


def open_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    split: str = "train",
    size: tuple[int, int] | None = None,
    task: str | None = None,
    **options: Any,
) -> DenseDataset:
    """Open a data set by name.

    Args:
        name: "camvid", "nyuv2", "folder" or "scenes".
        root: Its folder; not for "scenes". "folder" expects ``images`` and ``masks`` (or
            ``labels``; for depth ``depth``) there, or the same inside a folder named after the
            split; ``classes.txt`` at the top can name the classes.
        split: "train", "val" or "test".
        size: Rows and columns; None takes the data set's default.
        task: "segmentation", "multilabel", "depth", or None for the data set's default.
        **options: Arguments of the data set's class, such as ``augment``, ``normalize``,
            ``cache``, ``classes``, ``mask_values`` and ``depth_scale`` ("folder"), ``count`` and
            ``seed`` ("scenes").

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
    return _OPENERS[name](root, split, (int(size[0]), int(size[1])), **options)


def _default_size(name: str) -> dict[str, Any]:
    return {"size": None} if name in ("scenes", "folder") else {}
