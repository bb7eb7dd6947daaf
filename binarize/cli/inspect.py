"""``binarize inspect``: how much information feature maps keep after binarization."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.datasets import add_data_options
from binarize.cli.images import check_image_options, find_images, open_images
from binarize.cli.networks import FORMS, add_network_of_file, add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.errors import BinarizeError, FileError
from binarize.extras import require

if TYPE_CHECKING:
    from torch import Tensor

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
    paths = find_images(args.images)[: args.limit] if args.images else None
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
    images = open_images(args, source.settings, out, paths)
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


def _check(args: argparse.Namespace) -> None:
    for name, least in (("limit", 1), ("threads", 1), ("maps", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise BinarizeError(name, value, f"must be at least {least}", "give a larger number")
    check_image_options(args)
    there = next(path for path in (args.output, *args.output.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        rule = "cannot be written to" if there.is_dir() else f"{there} is a file"
        raise FileError("output", str(args.output), rule, "choose another folder")


def _network(args: argparse.Namespace, source: Any, example: Tensor, out: Output) -> Any:
    if args.policy is None:
        return source.network
    from binarize.graph import convert

    with out.step(f"converting with policy {args.policy}"):
        return convert(source.network, args.policy, example_inputs=example)
