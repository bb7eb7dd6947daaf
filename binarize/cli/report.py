"""``binarize report``: size and cost of a network, layer by layer, with reasons."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from binarize.cli.networks import FORMS, add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command, extent
from binarize.errors import BinarizeError

__all__ = ["add", "run"]

_DESCRIPTION = """\
Show for every layer what was decided and what it costs, and the totals compared with the float
network. Sizes are exact to the byte. Operations are counted for the image size that a file was
converted or trained for; a network given by name needs --size."""

_EXAMPLES = [
    ("binarize report runs/binary/binary.safetensors", "a saved network"),
    (
        "binarize report smp:Unet:resnet34 --classes 11 --policy bidense --size 480x352",
        "what a network would cost, without saving anything",
    ),
    (
        "binarize report unet.safetensors --size 480x352 --depth 2",
        "layers grouped by the first two parts of their names",
    ),
    (
        "binarize report unet.safetensors --html page.html",
        "a page to click through: layers, treemaps, the network as a graph",
    ),
    ("binarize report unet.safetensors --json", "all numbers as JSON"),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "report",
        run,
        help="report size and cost of a network, layer by layer",
        usage="MODEL",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help=f"a saved network, or {FORMS}")
    parser.add_argument(
        "--policy", metavar="NAME|FILE", help="convert the float network with this policy first"
    )
    parser.add_argument(
        "--size",
        type=extent,
        metavar="WxH[xD]",
        help="count operations for an image of this size (default: the file's own)",
    )
    parser.add_argument(
        "--packed",
        action="store_true",
        help="for a saved network: which kernel path each layer takes, and why",
    )
    parser.add_argument(
        "--depth", type=int, metavar="N", help="group layers by N parts of their names"
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="also write the report as a page: one HTML file that works offline",
    )
    parser.add_argument(
        "--model",
        dest="network",
        metavar="MODEL",
        help="the network of the file, if the file does not name it (see train)",
    )
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Report."""
    if args.depth is not None and args.depth < 1:
        raise BinarizeError("depth", args.depth, "must be at least 1", "use e.g. 2")
    if args.html is not None and args.packed:
        raise BinarizeError(
            "html", str(args.html), "cannot be combined with --packed", "omit one of them"
        )
    from binarize.cli.examples import example_for, shell_remedies
    from binarize.cli.sources import is_file, open_source
    from binarize.graph import convert
    from binarize.report import report

    fallback = None if is_file(args.model) else recipe_from(args, args.model)
    if args.network is not None:
        fallback = recipe_from(args, args.network)
    with out.step(f"opening {args.model}"):
        source = open_source(args.model, fallback, packed=args.packed, deployed=True)
    network: Any = source.network
    if source.kind is not None:
        if args.html is not None:
            raise BinarizeError(
                "html",
                str(args.html),
                f"{args.model} has no layers to show",
                "report the file that it was created from",
            )
        _report_deployed(args, source, out)
        return None
    if args.packed:
        paths: Any = report(network)
        out.print(str(paths), wrap=False)
        out.emit({**paths.to_dict(), "file": Path(args.model)})
        return None
    known = source.settings.get("size")
    shape = args.size or (None if known is None else tuple(known))
    # A file records its example inputs; the user's file is only needed for another size.
    known_inputs = source.binary and shape is None
    example = None if known_inputs else example_for(network, source.recipe, shape)
    if args.policy is not None:
        with out.step(f"converting with policy {args.policy}"), shell_remedies(args.model):
            network = convert(network, args.policy, example_inputs=example)
    with out.step("counting"), shell_remedies(args.model):
        made = report(network, example)
    out.console.print(made.table(args.depth))
    answer = made.to_dict()
    if args.html is not None:
        answer["html"] = made.to_html(args.html)
        out.print(f"page: {args.html}", wrap=False)
    if source.binary:
        answer["file"] = Path(args.model)
    out.emit(answer)
    return None


def _report_deployed(args: argparse.Namespace, source: Any, out: Output) -> None:
    """Report a file of packed programs or ONNX: bytes, inputs and description."""
    size = Path(args.model).expanduser().stat().st_size
    network, settings = source.network, source.settings
    kind = {"programs": "packed programs", "onnx": "ONNX"}[source.kind]
    shapes = [list(shape) for shape in network.example_shapes]
    shown = ", ".join("×".join(map(str, shape)) for shape in shapes)
    free = "" if network.fixed else " (any size)"
    out.print(f"{args.model}: {kind}, {size:,} bytes, takes {shown}{free}", wrap=False)
    if network.outputs:
        out.print(f"outputs: {', '.join(network.outputs)}")
    for name in ("task", "normalize", "classes"):
        value = settings.get(name)
        if value:
            out.print(f"{name}: {value if isinstance(value, str) else ', '.join(value)}")
    out.print("for single layers, report the file that it was created from")
    out.emit(
        {
            "file": Path(args.model),
            "kind": source.kind,
            "file_bytes": size,
            "inputs": shapes,
            "fixed": network.fixed,
            "outputs": list(network.outputs),
            "settings": dict(settings),
        }
    )
