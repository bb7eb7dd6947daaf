"""The options that name a data set, and what comes of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from binarize.cli.output import Output
from binarize.cli.parser import size
from binarize.errors import DataError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from binarize.data import DenseDataset

__all__ = ["add_data_options", "has_split", "make_loader", "open_data", "task_of"]


def add_data_options(
    parser: argparse.ArgumentParser, *, required: bool = True, workers: bool = True
) -> None:
    """Add the options that choose the data set, its task, its size and its loader processes."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        required=required,
        metavar="NAME",
        help="camvid, nyuv2, folder (images/ and masks/), or scenes (made up, no download)",
    )
    group.add_argument("--root", metavar="PATH", help="the data set's folder; not for scenes")
    group.add_argument(
        "--task", metavar="TASK", help="segmentation or depth (default: depth for nyuv2)"
    )
    group.add_argument(
        "--size",
        type=size,
        metavar="WxH",
        help="width x height in pixels, e.g. 192x144 (default: the data set's)",
    )
    group.add_argument(
        "--normalize",
        metavar="NAME",
        help="values of the input: imagenet (default), symmetric (-1 to 1) or none (0 to 1)",
    )
    group.add_argument(
        "--count", type=int, metavar="N", help="pictures of 'scenes' (default 256, 64 to test)"
    )
    if workers:
        group.add_argument("--workers", type=int, default=0, metavar="N", help="loader processes")
    else:
        parser.set_defaults(workers=0)


def task_of(args: argparse.Namespace, known: Mapping[str, Any]) -> str:
    """The task asked for, known from the network's training, or usual for the data."""
    default = "depth" if args.data == "nyuv2" else "segmentation"
    return str(args.task or known.get("task") or default)


def open_data(
    args: argparse.Namespace,
    split: str,
    out: Output,
    *,
    known: Mapping[str, Any] | None = None,
    augment: Any = False,
    preload: bool = True,
) -> DenseDataset:
    """Open a split of the data set and read it into memory, with a bar.

    Args:
        args: Parsed options of :func:`add_data_options`.
        split: "train", "val" or "test".
        out: Where progress goes.
        known: Settings of the network's training, for what the options leave open.
        augment: Handed to the data set.
        preload: False leaves the reading to whoever takes a sample.

    Raises:
        DataError: The data set refuses, or a value is out of range.
    """
    from binarize.data import open_dataset

    known = known or {}
    if args.workers < 0:
        raise DataError("workers", args.workers, "must not be negative", "use 0 for none")
    options: dict[str, Any] = {"augment": augment}
    normalize = args.normalize or known.get("normalize")
    if normalize is not None:
        options["normalize"] = normalize
    if args.data == "folder" and getattr(args, "classes", None) is not None:
        options["classes"] = args.classes
    if args.data == "scenes" and args.count is not None:
        options["count"] = args.count if split == "train" else max(1, args.count // 4)
    shape = args.size
    if shape is None and known.get("size"):
        shape = tuple(known["size"])
    if shape is None and args.data == "folder":
        raise DataError(
            "size", None, "pictures of a folder need a common size", "give e.g. --size 256x192"
        )
    data = open_dataset(
        args.data, args.root, split=split, size=shape, task=task_of(args, known), **options
    )
    if not preload:
        return data
    doing = "drawing" if args.data == "scenes" else "reading"
    with out.bar(f"{doing} {len(data)} pictures ({split})", len(data)) as move:
        data.preload(move)
    return data


def has_split(args: argparse.Namespace, split: str) -> bool:
    """Whether the data set has pictures of its own for a split."""
    from pathlib import Path

    if args.data == "nyuv2":
        return split != "val"
    if args.data == "folder":
        return (Path(args.root).expanduser() / split).is_dir()
    return True


def make_loader(
    data: DenseDataset, batch_size: int, *, train: bool = False, workers: int = 0
) -> DataLoader[Any]:
    """Batches of a data set; shuffled, and without a last smaller batch, for training.

    Raises:
        DataError: The batch size is not positive.
    """
    from torch.utils.data import DataLoader

    if batch_size < 1:
        raise DataError("batch-size", batch_size, "must be at least 1", "use e.g. 16")
    return DataLoader(
        data,
        batch_size=batch_size,
        shuffle=train,
        # A rest of one picture has no statistics for a norm on a small map.
        drop_last=train and len(data) >= batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
