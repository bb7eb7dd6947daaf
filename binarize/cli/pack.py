"""``binarize pack``: convert a saved 1-bit network to a file for deployment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from binarize.cli.networks import add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command, extent
from binarize.errors import BinarizeError, ModelError

__all__ = ["add", "run"]

_DESCRIPTION = """\
Write the packed programs of a 1-bit network, which run on XNOR-popcount kernels, to one file. It
runs images of any size, except for networks that do something else at each size, and loads in an
instant, without the network's code or library, with binarize.load(FILE) and with predict, eval,
report and bench. The file includes size, normalisation, classes and their colours. The size is the
training's unless --size is given."""

_EXAMPLES = [
    ("binarize pack runs/binary/binary.safetensors -o unet.packed", "at the training size"),
    (
        "binarize pack runs/binary/binary.safetensors -o unet.packed --size 480x352 \\\n"
        "      --batch-size 4",
        "recorded for batches of four images of 480x352",
    ),
    ("binarize predict unet.packed photos/ --output out", "run the packed file"),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "pack",
        run,
        help="write a 1-bit network's packed programs for deployment",
        usage="FILE -o OUT",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="a 1-bit network that binarize wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="where to")
    parser.add_argument(
        "--size",
        type=extent,
        metavar="WxH[xD]",
        help="image size (default: the file's own)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="images per batch (default 1)"
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="the network, if the file does not name it (see train)"
    )
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Pack."""
    if args.batch_size < 1:
        raise BinarizeError("batch-size", args.batch_size, "must be positive", "use 1 or more")
    from binarize.cli.export import check_output, example_of_file
    from binarize.cli.sources import open_file
    from binarize.file import save
    from binarize.lower import pack

    check_output(args.file, args.output)
    fallback = None if args.model is None else recipe_from(args, args.model)
    with out.step(f"loading {args.file}"):
        source = open_file(args.file, fallback, deployed=True)
    if not source.binary or source.kind is not None:
        raise ModelError(
            "file",
            args.file,
            "is packed already" if source.kind else "this is a float network",
            "give a file from binarize train or binarize convert",
        )
    example = example_of_file(args, source)
    settings = dict(source.settings)
    if example[0].dim() == 4:
        settings["size"] = list(example[0].shape[2:])
    recipe = None if source.recipe is None else source.recipe.to_dict()
    with out.step(f"writing {args.output}"):
        packed: Any = pack(source.network, example)
        save(packed, args.output, description={"recipe": recipe, "settings": settings})
    written = args.output.stat().st_size
    shapes = [list(value.shape) for value in example]
    shown = ", ".join("×".join(map(str, shape)) for shape in shapes)
    out.print(f"{args.output}: {written:,} bytes, takes {shown}", wrap=False)
    out.print(f"next: binarize predict {args.output} IMAGE --output DIR", wrap=False)
    out.emit({"file": args.file, "output": args.output, "bytes": written, "shapes": shapes})
    return None
