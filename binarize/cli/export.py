"""``binarize export``: write a saved 1-bit network as an ONNX file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from binarize.cli.networks import add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command, extent
from binarize.errors import BinarizeError, FileError, ModelError

__all__ = ["add", "check_output", "example_of_file", "run"]

_DESCRIPTION = """\
Write a 1-bit network as an ONNX file. By default it uses standard operators only, so any runtime
can run it: binary weights are stored as bits, but computed as floats, so the file is small but runs
slower than the float network. With --runtime binarize, binary layers are this package's operators:
fast in ONNX Runtime, without PyTorch (binarize.runtime). A file of standard operators takes images
of one size: --size, or that of the training or conversion; with --dynamic or --runtime binarize it
takes images of any size. Requires the packages onnx and onnxscript."""

_EXAMPLES = [
    ("binarize export runs/binary/binary.safetensors -o unet.onnx", "at the training size"),
    (
        "binarize export unet.safetensors -o unet.onnx --size 480x352 --batch-size 4",
        "for batches of four images of another size",
    ),
    ("binarize export unet.safetensors -o unet.onnx --dynamic", "for images of any size"),
    (
        "binarize export unet.safetensors -o unet.onnx --runtime binarize",
        "fast in ONNX Runtime, without PyTorch",
    ),
    (
        "binarize export mine.safetensors -o mine.onnx --model nets.py:make --json",
        "your own network; the result as JSON",
    ),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "export",
        run,
        help="write a 1-bit network as an ONNX file",
        usage="FILE -o NET.onnx",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="a 1-bit network that binarize wrote")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="NET.onnx", help="where to"
    )
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
        "--runtime",
        choices=("standard", "binarize"),
        default="standard",
        help="operators of the binary layers: ONNX's standard ones, for every runtime (default), "
        "or this package's, which run on its kernels in ONNX Runtime",
    )
    parser.add_argument(
        "--dynamic",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="accept any batch size and image size that the network accepts (default with "
        "--runtime binarize)",
    )
    parser.add_argument(
        "--model", metavar="MODEL", help="the network, if the file does not name it (see train)"
    )
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Export."""
    if args.batch_size < 1:
        raise BinarizeError("batch-size", args.batch_size, "must be positive", "use 1 or more")
    import warnings

    check_output(args.file, args.output)
    from binarize.cli.sources import open_file
    from binarize.lower import export_onnx

    fallback = None if args.model is None else recipe_from(args, args.model)
    with out.step(f"loading {args.file}"):
        source = open_file(args.file, fallback, deployed=True)
    if not source.binary or source.kind is not None:
        raise ModelError(
            "file",
            args.file,
            "is already packed or exported"
            if source.kind
            else "this is a float network, but only 1-bit networks can be exported",
            "give a file from binarize train or binarize convert",
        )
    example = example_of_file(args, source)
    dynamic = args.runtime == "binarize" if args.dynamic is None else args.dynamic
    shape: tuple[int | str, ...] = tuple(example[0].shape)
    if dynamic:
        shape = ("N", shape[1], *("D", "H", "W")[5 - len(shape) :])
    recipe = None if source.recipe is None else source.recipe.to_dict()
    settings = dict(source.settings)
    if example[0].dim() == 4 and not dynamic:
        settings["size"] = list(example[0].shape[2:])
    # The exporter warns about its own future changes.
    with out.step(f"writing {args.output}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_onnx(
            source.network,
            args.output,
            example,
            dynamic=dynamic,
            runtime=args.runtime,
            description={"recipe": recipe, "settings": settings},
        )
    written = args.output.stat().st_size
    line = f"{args.output}: {written / 1e6:.2f} MB, takes {'×'.join(map(str, shape))}"
    out.print(line, wrap=False)
    if args.runtime == "binarize":
        out.note("note: run it with binarize.runtime.Session, which needs no torch, or from C++")
        _emit(args, out, written, shape)
        return None
    out.note(
        "note: with standard operators, 1-bit layers run as float convolutions: the file is small "
        "but slower than the float network; for speed, use --runtime binarize or binarize pack"
    )
    _emit(args, out, written, shape)
    return None


def _emit(args: argparse.Namespace, out: Output, written: int, shape: Any) -> None:
    made = {"file": args.file, "output": args.output, "bytes": written, "shape": list(shape)}
    out.emit(made | {"runtime": args.runtime})


def example_of_file(args: argparse.Namespace, source: Any) -> tuple[Any, ...]:
    """Return example inputs of the requested, trained or converted size."""
    import torch
    from torch.utils._pytree import tree_map_only

    from binarize.cli.examples import example_for
    from binarize.graph.inputs import arguments

    known = source.settings.get("size")
    given = example_for(source.network, source.recipe, args.size or (known and tuple(known)))
    if given is None:
        shapes = source.network.binarize_plan.example
        if not shapes:
            raise BinarizeError(
                "file", args.file, "does not specify its network's inputs", "give --size WxH"
            )
        given = tuple(torch.zeros(shape) for shape in shapes)
    inputs, named = arguments(given)
    if named:
        raise BinarizeError(
            "model",
            list(named),
            "inputs of an exported network are positional",
            "let example_inputs return a tuple",
        )
    count = args.batch_size
    repeated: tuple[Any, ...] = tree_map_only(
        torch.Tensor, lambda x: x[:1].expand(count, *x.shape[1:]).contiguous(), inputs
    )
    return repeated


def check_output(file: str, output: Path) -> None:
    """Reject an output that is the input file or in a missing folder, before anything slow.

    Raises:
        FileError: It is.
    """
    if output.is_dir():
        raise FileError("output", str(output), "is a folder", "give the name of a file in it")
    if not output.parent.is_dir():
        raise FileError("output", str(output), "its folder does not exist", "create it first")
    source = Path(file).expanduser()
    if source.exists() and output.exists() and source.samefile(output):
        raise FileError("output", str(output), "is the input file", "give another name")
