"""``binarize report``: size and cost of a network, layer by layer, with reasons."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.networks import FORMS, add_network_of_file, add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command, extent
from binarize.errors import BinarizeError

if TYPE_CHECKING:
    from binarize.cli.sources import Source
    from binarize.page import Section
    from binarize.report import Report

__all__ = ["add", "count", "run"]

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
    (
        "binarize report runs/binary/binary.safetensors --html page.html \\\n"
        "      --image photo.jpg --teacher runs/float/float.safetensors",
        "a page that also shows what both networks predict",
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
        "--image",
        type=Path,
        metavar="FILE",
        help="for --html: show what the network predicts for this image",
    )
    parser.add_argument(
        "--teacher", metavar="FILE", help="for --image: the float network to compare it with"
    )
    parser.add_argument(
        "--inspected",
        type=Path,
        metavar="DIR",
        help="for --html: show what binarize inspect wrote into this folder",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="for --html: show the latency of the layers, as binarize profile wrote it",
    )
    add_network_of_file(parser)
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Report."""
    if args.depth is not None and args.depth < 1:
        raise BinarizeError("depth", args.depth, "must be at least 1", "use e.g. 2")
    if args.html is not None and args.packed:
        raise BinarizeError(
            "html", str(args.html), "cannot be combined with --packed", "omit one of them"
        )
    if args.html is None:
        for name in ("image", "inspected", "profile"):
            if getattr(args, name) is not None:
                raise BinarizeError(
                    name, str(getattr(args, name)), "is for the page", "give --html FILE too"
                )
    if args.teacher is not None and args.image is None:
        raise BinarizeError("teacher", args.teacher, "needs an image", "give --image FILE too")
    from binarize.cli.examples import shell_remedies
    from binarize.cli.sources import is_file, open_source
    from binarize.graph import convert
    from binarize.page import write_page
    from binarize.report import report
    from binarize.report.page import report_page

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
    example = _example(source, args.size)
    if args.policy is not None:
        with out.step(f"converting with policy {args.policy}"), shell_remedies(args.model):
            network = convert(network, args.policy, example_inputs=example)
    with out.step("counting"), shell_remedies(args.model):
        made = report(network, example)
    out.console.print(made.table(args.depth))
    answer = made.to_dict()
    if args.html is not None:
        page = report_page(made, _measured(args, source, network, out), _inspected(args))
        answer["html"] = write_page(page, args.html)
        out.print(f"page: {args.html}", wrap=False)
    if source.binary:
        answer["file"] = Path(args.model)
    out.emit(answer)
    return None


def count(source: Source, reference: str) -> Report:
    """Count a network as it is.

    Args:
        source: The opened network.
        reference: What the user named it by, for messages.
    """
    from binarize.cli.examples import shell_remedies
    from binarize.report import report

    with shell_remedies(reference):
        return report(source.network, _example(source, None))


def _example(source: Source, size: tuple[int, ...] | None) -> Any:
    """Return example inputs of a size, or else of the network's own; None if it records them."""
    from binarize.cli.examples import example_for

    known = source.settings.get("size")
    shape = size or (None if known is None else tuple(known))
    # A file records its example inputs; the user's file is only needed for another size.
    if source.binary and shape is None:
        return None
    return example_for(source.network, source.recipe, shape)


def _measured(args: argparse.Namespace, source: Source, network: Any, out: Output) -> list[Section]:
    """Return the page's sections on accuracy, latency and predictions, as far as they are known."""
    from binarize.cli.report_page import latency_section, prediction_section, result_sections
    from binarize.cli.sources import is_file, known_about, open_source

    sections = result_sections(Path(args.model).expanduser())
    if args.profile is not None:
        from binarize.latency import Profile

        sections.append(latency_section(Profile.load(args.profile)))
    if args.image is not None:
        title = "1-bit" if source.binary or args.policy is not None else "float"
        networks = {title: replace(source, network=network.eval())}
        if args.teacher is not None:
            fallback = source.recipe
            if is_file(args.teacher) and known_about(args.teacher, "teacher").get("recipe"):
                fallback = None  # its own network
            with out.step(f"opening {args.teacher}"):
                teacher = open_source(args.teacher, fallback, argument="teacher")
            networks = {"float (teacher)": teacher, **networks}
        with out.step(f"predicting {args.image}"):
            sections.append(prediction_section(networks, args.image))
    return sections


def _inspected(args: argparse.Namespace) -> list[Section]:
    from binarize.inspection import Inspection
    from binarize.inspection.page import inspection_sections

    if args.inspected is None:
        return []
    return inspection_sections(Inspection.load(args.inspected), "inspection-")


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
            out.print(f"{name}: {value if isinstance(value, str) else ', '.join(map(str, value))}")
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
