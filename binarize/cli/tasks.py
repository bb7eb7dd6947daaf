"""``binarize tasks``: list and remove the tasks that share a file's bits."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.datasets import add_data_options
from binarize.cli.images import check_image_options, find_images, open_images
from binarize.cli.networks import add_network_of_file, add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.errors import BinarizeError

if TYPE_CHECKING:
    from binarize.sharing import TasksReport

__all__ = ["add"]

_DESCRIPTION = """\
One file can hold a 1-bit network and further tasks that share its bits; each adds its flipped bits
and its own thresholds, norms and output layers only. binarize train --add-task trains one. Every
command takes a task as FILE#TASK.

With images, it also shows in how many of the binarized inputs of its layers a task differs from the
base."""

_EXAMPLES = [
    ("binarize tasks runs/labels/binary.safetensors", "what is in a file, and what each adds"),
    ("binarize tasks runs/labels/binary.safetensors --layers", "which layers the flips are in"),
    (
        "binarize tasks runs/labels/binary.safetensors --operations",
        "also operations: of one pass for all tasks, and of separate networks",
    ),
    (
        "binarize tasks runs/labels/binary.safetensors --images photos/ --layers \\\n"
        "      --output out",
        "also the differing inputs, per layer, with a figure",
    ),
    (
        "binarize predict runs/labels/binary.safetensors#labels photo.jpg --output out",
        "run one of its tasks",
    ),
    ("binarize tasks runs/labels/binary.safetensors --remove labels", "only the base is left"),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "tasks",
        run,
        help="list or remove the tasks that share a file's bits",
        usage="FILE",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="file of a 1-bit network")
    parser.add_argument("--layers", action="store_true", help="the shares of every layer, too")
    parser.add_argument(
        "--operations",
        action="store_true",
        help="count operations, too: of each network, of one pass for all, and in float",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="measure differing inputs on images, or folders of images; or give --data",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--split", help="train, val or test (default test, else val)")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="write the numbers and a figure of the shares per layer into this folder",
    )
    parser.add_argument("--remove", metavar="NAME", help="remove this task from the file")
    add_network_of_file(parser)
    add_data_options(parser, required=False, workers=False)
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """List the tasks, after removing one."""
    from binarize.file import remove_task
    from binarize.sharing.report import count_memory

    if args.limit is not None and args.limit < 1:
        raise BinarizeError("limit", args.limit, "must be at least 1", "give a larger number")
    measured = bool(args.images) or args.data is not None
    if measured:
        check_image_options(args)
    path = args.file.expanduser()
    made = count_memory(path)  # rejects other files
    if args.remove is not None:
        remove_task(path, args.remove)
        made = count_memory(path)
    if measured or args.operations:
        made = _measure(args, made, out)
    files = () if args.output is None else made.save(args.output)
    _show(made, out)
    if args.layers and made.tasks:
        _show_layers(made, out)
    if files:
        out.print(f"written: {', '.join(map(str, files))}", wrap=False)
    out.emit({"file": path, **made.to_dict(), "files": files})
    return None


def _measure(args: argparse.Namespace, memory: TasksReport, out: Output) -> TasksReport:
    """Open the networks, count their operations and compare their inputs on images."""
    from binarize.cli.examples import example_for, shell_remedies
    from binarize.cli.sources import open_source
    from binarize.file.tasks import BASE
    from binarize.sharing.report import measure_tasks

    paths = find_images(args.images)[: args.limit] if args.images else None
    fallback = None if args.network is None else recipe_from(args, args.network)
    names = {BASE: str(args.file), **{t.name: f"{args.file}#{t.name}" for t in memory.tasks}}
    sources = {}
    for name, reference in names.items():
        with out.step(f"opening {reference}"):
            sources[name] = open_source(reference, fallback)
    base = sources[BASE]
    networks: dict[str, Any] = {name: source.network for name, source in sources.items()}
    known = base.settings.get("size")
    size = args.size or (None if known is None else tuple(known))
    example = None if size is None else example_for(base.network, base.recipe, size)
    with shell_remedies(str(args.file)):
        if paths is None and args.data is None:
            with out.step("counting"):
                return measure_tasks(memory, networks, (), example)
        images = open_images(args, base.settings, out, paths)
        with out.bar(f"measuring on {len(images.names)} images", len(images.names)) as move:

            def batches() -> Iterator[Any]:
                for number in range(len(images.names)):
                    yield images.sample(number)[1]
                    move(number + 1, len(images.names))

            return measure_tasks(memory, networks, batches(), example)


def _show(made: TasksReport, out: Output) -> None:
    from rich.table import Table

    titles = {"bytes": True, "of the base": True, "flipped bits": True}
    counted, measured = bool(made.ops), made.inputs is not None
    titles |= {"differing inputs": measured, "operations": counted, "of the base's": counted}
    table = Table(box=None, pad_edge=False)
    table.add_column("network")
    for title, shown in titles.items():
        if shown:
            table.add_column(title, justify="right")
    rows = made.rows()
    for name, size, ops, flips, inputs in rows:
        first = name == rows[0][0]
        cells = {
            "bytes": _number(size),
            "of the base": "" if first else _relative(size, made.base_bytes),
            "flipped bits": flips,
            "differing inputs": inputs,
            "operations": _number(ops),
            "of the base's": "" if first else _relative(ops, rows[0][2]),
        }
        table.add_row(name, *(cells[title] for title, shown in titles.items() if shown))
    out.print(table)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"


def _relative(value: float | None, base: float | None) -> str:
    return "" if value is None or not base else f"{value / base:.1%}"


def _show_layers(made: TasksReport, out: Output) -> None:
    from rich.table import Table

    from binarize.sharing.report import percent

    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    measured = made.inputs is not None
    for task in made.tasks:
        table.add_column(f"{task.name}: flipped bits", justify="right")
        if measured:
            table.add_column(f"{task.name}: differing inputs", justify="right")
    for layer in made.layers:
        cells = []
        for task in made.tasks:
            flips, weights = task.layers.get(layer, (0, 0))
            cells.append(percent(flips / weights if weights else None))
            if measured:
                cells.append(percent(made.differing(task.name, layer)))
        table.add_row(layer, *cells)
    out.print("")
    out.print(table)
