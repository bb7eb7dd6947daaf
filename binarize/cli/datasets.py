"""Data set options, and opening the data sets."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.output import Output
from binarize.cli.parser import numbers, size, size_or_original
from binarize.errors import DataError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from binarize.data import DenseDataset

__all__ = [
    "FOLDER_LAYOUT",
    "add_data_options",
    "has_split",
    "held_out",
    "make_loader",
    "open_data",
    "open_unlabelled",
    "task_of",
]

FOLDER_LAYOUT = """\
A folder has images/ and masks/ (or labels/), a mask with the name of its image, as grey or palette
PNGs of class indices, 255 ignored; with splits, the same inside train/, val/ and test/. classes.txt
at the top names the classes, one per line; with a colour each (NAME R G B), masks may be coloured.
For depth: depth/ instead of masks/, 16-bit PNGs (--depth-scale) or .npy files in metres. For
multilabel: masks/CLASS/, a two-valued mask for each image that contains the class. To train from a
--teacher only, a folder of images is enough."""


_ONLY = {"lists": ("kitti", "nyuv2"), "sbd": ("voc2012",)}


def add_data_options(
    parser: argparse.ArgumentParser,
    *,
    required: bool = True,
    workers: bool = True,
    original: bool = False,
) -> None:
    """Add the options that choose the data set, its task, its size and its loader processes.

    Args:
        parser: The command's parser.
        required: A data set must be given.
        workers: There may be loader processes.
        original: Images may keep their sizes.
    """
    group = parser.add_argument_group("data", FOLDER_LAYOUT)
    group.add_argument(
        "--data",
        required=required,
        metavar="NAME",
        help="ade20k, camvid, cityscapes, kitti, nyuv2, voc2012, folder (see above), or scenes "
        "(synthetic, no download)",
    )
    group.add_argument("--root", metavar="PATH", help="the data set's folder; not for scenes")
    group.add_argument(
        "--lists",
        metavar="DIR",
        help="kitti, nyuv2: folder with the lists of the splits (default: --root)",
    )
    group.add_argument(
        "--sbd",
        metavar="DIR",
        help="voc2012: folder of SBD (benchmark_RELEASE/dataset), to train on its images too",
    )
    group.add_argument(
        "--task",
        metavar="TASK",
        help="segmentation, multilabel, depth, normals, edges, or several as depth+normals for a "
        "network that returns them (default: depth for kitti and nyuv2, else segmentation)",
    )
    group.add_argument(
        "--size",
        type=size_or_original if original else size,
        metavar="WxH",
        help="width x height in pixels, e.g. 192x144 (default: the data set's)"
        + ("; original: each image's own, padded in batches" if original else ""),
    )
    group.add_argument(
        "--fit",
        choices=("resize", "crop"),
        help="how images of another shape get that size: resize stretches them, crop keeps their "
        "aspect ratio and cuts (default: resize; crop for ade20k, kitti and voc2012)",
    )
    group.add_argument(
        "--normalize",
        metavar="NAME",
        help="input normalisation: imagenet (default), symmetric (-1 to 1) or none (0 to 1)",
    )
    group.add_argument(
        "--count", type=int, metavar="N", help="images of 'scenes' (default 256, 64 to test)"
    )
    group.add_argument(
        "--mask-values",
        type=numbers,
        metavar="V,V,...",
        help="folder: the mask value of each class, in order (default: 0, 1, 2...; detected for "
        "two classes)",
    )
    group.add_argument(
        "--mask-ignore",
        type=numbers,
        metavar="V,V,...",
        help="folder: mask values to ignore besides 255",
    )
    group.add_argument(
        "--allow-empty-classes",
        action="store_true",
        help="train even if a class has no labelled pixel",
    )
    group.add_argument(
        "--depth-scale",
        type=float,
        metavar="M",
        help="folder: metres per unit of the depth maps, e.g. 0.001 for millimetres",
    )
    group.add_argument(
        "--max-depth", type=float, metavar="M", help="folder: largest depth in metres (default 10)"
    )
    if workers:
        group.add_argument("--workers", type=int, default=0, metavar="N", help="loader processes")
    else:
        parser.set_defaults(workers=0)


def task_of(args: argparse.Namespace, known: Mapping[str, Any]) -> str:
    """Return the requested task, that of the network's training, or the data's default."""
    default = "depth" if args.data in ("kitti", "nyuv2") else "segmentation"
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
    """Open a split of the data set and read it into memory, with a progress bar.

    Args:
        args: Parsed options of :func:`add_data_options`.
        split: "train", "val" or "test".
        out: The output, for progress.
        known: Settings of the network's training, as defaults of the options.
        augment: Passed to the data set.
        preload: If false, samples are read on demand.

    Raises:
        DataError: The data set cannot be opened, or a value is out of range.
    """
    from binarize.data import open_dataset

    known = known or {}
    if args.workers < 0:
        raise DataError("workers", args.workers, "must not be negative", "use 0 for none")
    options: dict[str, Any] = {"augment": augment}
    normalize = args.normalize or known.get("normalize")
    if normalize is not None:
        options["normalize"] = normalize
    for name in ("lists", "sbd"):
        if getattr(args, name, None) is not None:
            if args.data not in _ONLY[name]:
                rule = f"{args.data} has no such option"
                raise DataError(name, getattr(args, name), rule, f"omit --{name}")
            options[name] = getattr(args, name)
    fit = args.fit or known.get("fit")
    if fit is not None:
        options["fit"] = fit
    task = task_of(args, known)
    photos = _photos(args, split)
    if photos is not None:
        return _open_photos(args, photos, task, out, preload=preload, **options)
    if args.data == "folder":
        channels = getattr(args, "in_channels", 3)
        bands = channels if channels != 3 else known.get("bands")
        if bands is not None:
            options["bands"] = bands
        options |= _folder_options(args, task, known)
    if args.data == "nyuv2" and "segmentation" in task.split("+"):
        classes = getattr(args, "classes", None) or len(known.get("classes") or ())
        if classes:
            options["classes"] = classes
    if args.data == "scenes" and args.count is not None:
        options["count"] = args.count if split == "train" else max(1, args.count // 4)
    shape = args.size
    if shape is None and "size" in known:
        shape = tuple(known["size"]) if known["size"] else "original"
    if shape is None and args.data == "folder":
        raise DataError(
            "size",
            None,
            "images of a folder need a common size",
            "give e.g. --size 256x192, or --size original",
        )
    data = open_dataset(args.data, args.root, split=split, size=shape, task=task, **options)
    if args.allow_empty_classes:
        data.allow_empty = True
    # What was detected about a folder holds for all its splits.
    if (split == "train" or args.data != "folder") and getattr(data, "note", None):
        out.note(str(getattr(data, "note", "")))
    if not preload or _too_large(data, out):
        return data
    doing = "drawing" if args.data == "scenes" else "reading"
    with out.bar(f"{doing} {len(data)} images ({split})", len(data)) as move:
        data.preload(move)
    return data


def _too_large(data: DenseDataset, out: Output) -> bool:
    """Keep a data set on disk that takes more than half of the free memory."""
    from binarize.processor import free_memory

    needed, free = data.cache_bytes(), free_memory()
    if free is None or needed <= free // 2:
        return False
    data.drop_cache()
    out.note(
        f"note: {len(data)} images need {needed / 1e9:.1f} GB of the {free / 1e9:.1f} GB of free "
        "memory: they are read again in every epoch (--workers N reads in parallel)"
    )
    return True


def open_unlabelled(
    args: argparse.Namespace, labelled: DenseDataset, out: Output, *, augment: Any = False
) -> DenseDataset:
    """Open the images of ``--unlabelled`` at the size of the labelled ones.

    Raises:
        DataError: The folder is missing or has no images.
    """
    options = {"augment": augment, "normalize": labelled.normalize, "fit": labelled.fit}
    return _open_photos(
        args,
        Path(args.unlabelled),
        labelled.task,
        out,
        size_=labelled.size or "original",
        **options,
    )


def _photos(args: argparse.Namespace, split: str) -> Path | None:
    """Return the image folder of a data set without labels, for training from a teacher."""
    if split != "train" or args.data != "folder" or args.root is None:
        return None
    if getattr(args, "teacher", None) is None:
        return None
    top = Path(args.root).expanduser()
    base = top / split if (top / split).is_dir() else top
    if any((base / name).exists() for name in ("masks", "labels", "depth")):
        return None
    return base / "images" if (base / "images").is_dir() else base


def _open_photos(
    args: argparse.Namespace,
    path: Path,
    task: str | None,
    out: Output,
    *,
    preload: bool = True,
    size_: tuple[int, int] | str | None = None,
    **options: Any,
) -> DenseDataset:
    from binarize.data import UnlabelledFolder

    shape = args.size if size_ is None else size_
    if shape is None:
        raise DataError(
            "size", None, "images of a folder need a common size", "give e.g. --size 256x192"
        )
    if task != "depth" and getattr(args, "classes", None):
        options["classes"] = args.classes
    elif task == "depth":
        options["max_depth"] = 10.0 if args.max_depth is None else args.max_depth
    own: Any = None if shape == "original" else shape
    data = UnlabelledFolder(path, own, task=task, **options)
    out.note(f"note: {data.note}")
    if preload and not _too_large(data, out):
        with out.bar(f"reading {len(data)} images", len(data)) as move:
            data.preload(move)
    return data


def _folder_options(
    args: argparse.Namespace, task: str, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the folder's settings from the options, or else from the network's training."""
    if task == "depth":
        largest = known.get("max_depth") if args.max_depth is None else args.max_depth
        return {"depth_scale": args.depth_scale, "max_depth": largest}
    options: dict[str, Any] = {}
    classes = getattr(args, "classes", None)
    if classes is None and not (Path(args.root or ".").expanduser() / "classes.txt").is_file():
        classes = known.get("classes")
    if classes:
        options["classes"] = classes
    values = args.mask_values or known.get("mask_values")
    if values:
        options["mask_values"] = values
    if args.mask_ignore:
        options["mask_ignore"] = args.mask_ignore
    return options


def held_out(args: argparse.Namespace, out: Output) -> tuple[str, str]:
    """Return the evaluation split and its name: test, else val, else the whole folder.

    Raises:
        DataError: The folder has only training images.
    """
    if args.split is not None:
        return args.split, args.split
    found = next((name for name in ("test", "val") if has_split(args, name)), None)
    if found is not None:
        return found, found
    if args.data != "folder" or (Path(args.root).expanduser() / "train").is_dir():
        raise DataError(
            "split",
            None,
            "the data set has neither test nor val images",
            "give --split train to measure on the training images",
        )
    out.note(
        "note: the folder has no splits: all images are used, including any that the network was "
        "trained on"
    )
    return "train", "all"


def has_split(args: argparse.Namespace, split: str) -> bool:
    """Return whether the data set has separate images for a split."""
    from binarize.data import dataset_splits

    return split in dataset_splits(args.data, args.root, getattr(args, "lists", None))


def make_loader(
    data: DenseDataset, batch_size: int, *, train: bool = False, workers: int = 0
) -> DataLoader[Any]:
    """Return a data loader; for training, shuffled and without a smaller last batch.

    Raises:
        DataError: The batch size is not positive.
    """
    from torch.utils.data import DataLoader, Subset

    from binarize.data import PadCollate

    whole: Any = data.dataset if isinstance(data, Subset) else data
    if batch_size < 1:
        raise DataError("batch-size", batch_size, "must be at least 1", "use e.g. 16")
    return DataLoader(
        data,
        batch_size=batch_size,
        shuffle=train,
        # A last batch of one image has no statistics for a norm on a 1x1 feature map.
        drop_last=train and len(data) >= batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=PadCollate() if whole.size is None else None,
    )
