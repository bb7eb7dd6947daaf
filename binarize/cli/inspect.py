"""``binarize inspect``: how much information feature maps keep after binarization."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.datasets import add_data_options, held_out, open_data
from binarize.cli.networks import FORMS, add_network_of_file, add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.errors import BinarizeError, DataError, FileError
from binarize.extras import require

if TYPE_CHECKING:
    from torch import Tensor

    from binarize.cli.sources import Source

__all__ = ["add", "run"]

_DESCRIPTION = """\
Run a 1-bit network on images and measure the binarized inputs of its binary layers: the
information entropy of each channel (1 bit: as many +1 as -1, 0: all equal), the binarizers'
learned parameters, and the feature maps before and after the first binarization. Writes figures
(PNG) and their numbers (inspection.json, CSV)."""

_EXAMPLES = [
    (
        "binarize inspect runs/binary/binary.safetensors --images photos/ --output out",
        "on a folder of images, at the training size",
    ),
    (
        "binarize inspect runs/binary/binary.safetensors --data camvid \\\n"
        "      --root data/camvid --split val --limit 20 --output out",
        "on the first 20 images of a data set",
    ),
    (
        "binarize inspect runs/binary/binary.safetensors --images photos/*.jpg \\\n"
        "      --layer decoder.blocks.0.conv1.0 --maps 2 --output out",
        "with feature maps of a layer other than the first",
    ),
    (
        "binarize inspect timm:resnet18 --policy reactnet --images photos/ \\\n"
        "      --size 224x224 --output out --json",
        "a network right after conversion; numbers as JSON",
    ),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "inspect",
        run,
        help="measure the information that feature maps keep after binarization",
        usage="MODEL --images PATH --output DIR",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help=f"a saved network, or {FORMS}")
    parser.add_argument(
        "--images", nargs="+", metavar="PATH", help="images, or folders of images; or give --data"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for figures and numbers"
    )
    parser.add_argument(
        "--policy", metavar="NAME|FILE", help="convert the float network with this policy first"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument(
        "--layer", metavar="NAME", help="feature maps of this layer (default: the first that runs)"
    )
    parser.add_argument(
        "--maps", type=int, default=4, metavar="N", help="feature maps to keep (default 4)"
    )
    parser.add_argument("--split", help="train, val or test (default test, else val)")
    add_network_of_file(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    add_data_options(parser, required=False, workers=False)
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Measure, draw and write."""
    require("matplotlib")
    _check(args)
    paths = _paths(args)
    import torch

    from binarize.cli.sources import is_file, open_source
    from binarize.cli.start import try_out
    from binarize.inspection import inspect

    if args.threads:
        torch.set_num_threads(args.threads)
    fallback = None if is_file(args.model) else recipe_from(args, args.model)
    if args.network is not None:
        fallback = recipe_from(args, args.network)
    with out.step(f"opening {args.model}"):
        source = open_source(args.model, fallback)
    images = _from_dataset(args, source, out) if paths is None else _files(args, source, paths)
    first = images.sample(0)[1]
    network = _network(args, source, first, out)
    try_out(network, first)
    kept: list[tuple[str, Tensor]] = []
    with out.bar(f"measuring on {len(images.names)} images", len(images.names)) as move:

        def batches() -> Iterator[Tensor]:
            for number, name in enumerate(images.names):
                shown, batch = images.sample(number)
                if number < args.maps:
                    kept.append((name, shown))
                yield batch
                move(number + 1, len(images.names))

        made = inspect(network, batches(), layer=args.layer, maps=args.maps)
    with out.step(f"drawing into {args.output}"):
        files = made.save(args.output, kept)
    out.print(str(made), wrap=False)
    out.print(f"written: {', '.join(map(str, files))}", wrap=False)
    out.emit({**made.to_dict(), "pictures": images.names, "files": files})
    return None


@dataclass(frozen=True)
class _Images:
    """Images by index: their names, and functions that return each for display and as input."""

    names: Sequence[str]
    sample: Callable[[int], tuple[Tensor, Tensor]]


def _check(args: argparse.Namespace) -> None:
    for name, least in (("limit", 1), ("threads", 1), ("maps", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise BinarizeError(name, value, f"must be at least {least}", "give a larger number")
    if bool(args.images) == (args.data is not None):
        raise DataError(
            "images",
            args.images,
            "give either images or a data set, not both",
            "give --images or --data",
        )
    there = next(path for path in (args.output, *args.output.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        rule = "cannot be written to" if there.is_dir() else f"{there} is a file"
        raise FileError("output", str(args.output), rule, "choose another folder")


def _paths(args: argparse.Namespace) -> list[Path] | None:
    from binarize.cli.images import find_images

    return find_images(args.images)[: args.limit] if args.images else None


def _files(args: argparse.Namespace, source: Source, paths: Sequence[Path]) -> _Images:
    from binarize.cli.images import as_input
    from binarize.data.dense import normalisation
    from binarize.data.images import read_image, resize_image

    known = source.settings
    stats = normalisation(args.normalize or known.get("normalize") or "imagenet")
    shape = args.size or (tuple(known["size"]) if known.get("size") else None)

    def sample(number: int) -> tuple[Tensor, Tensor]:
        image = read_image(paths[number])
        image = image if shape is None else resize_image(image, shape)
        return image, as_input(image, stats)

    return _Images([path.name for path in paths], sample)


def _from_dataset(args: argparse.Namespace, source: Source, out: Output) -> _Images:
    split, called = held_out(args, out)
    data = open_data(args, split, out, known=source.settings, preload=False)

    def sample(number: int) -> tuple[Tensor, Tensor]:
        image = data[number]["image"]
        return data.denormalize(image), image[None]

    count = min(len(data), args.limit or len(data))
    return _Images([f"{args.data} {called} {number}" for number in range(count)], sample)


def _network(args: argparse.Namespace, source: Source, example: Tensor, out: Output) -> Any:
    if args.policy is None:
        return source.network
    from binarize.graph import convert

    with out.step(f"converting with policy {args.policy}"):
        return convert(source.network, args.policy, example_inputs=example)
