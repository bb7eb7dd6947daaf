"""``binarize tasks``: list and remove the tasks that share a file's bits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command

if TYPE_CHECKING:
    from binarize.file import SharedTask

__all__ = ["add"]

_DESCRIPTION = """\
One file can hold a 1-bit network and further tasks that share its bits; each adds its flipped bits
and its own thresholds, norms and output layers only. binarize train --add-task trains one. Every
command takes a task as FILE#TASK."""

_EXAMPLES = [
    ("binarize tasks runs/labels/binary.safetensors", "what is in a file, and what each adds"),
    ("binarize tasks runs/labels/binary.safetensors --layers", "which layers the flips are in"),
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
    parser.add_argument("--layers", action="store_true", help="the flips of every layer, too")
    parser.add_argument("--remove", metavar="NAME", help="remove this task from the file")


def run(args: argparse.Namespace, out: Output) -> int | None:
    """List the tasks, after removing one."""
    from rich.table import Table

    from binarize.file import remove_task, tasks
    from binarize.file.stored import read_stored

    path = args.file.expanduser()
    stored = read_stored(path)  # rejects other files
    if args.remove is not None:
        remove_task(path, args.remove)
    found = tasks(path)
    size = path.stat().st_size
    base = size - sum(task.bytes for task in found)
    alone = base + sum(task.alone_bytes for task in found)
    floats = (1 + len(found)) * stored.plan.reference.get("bytes", 0)
    table = Table(box=None, pad_edge=False)
    for title in ("network", "bytes", "of the base", "flipped bits"):
        table.add_column(title, justify="left" if title == "network" else "right")
    table.add_row("base", f"{base:,}", "", "")
    for task in found:
        table.add_row(task.name, f"{task.bytes:,}", f"{task.bytes / base:.1%}", _share(task))
    table.add_row("file", f"{size:,}", f"{size / base:.1%}", "")
    if found:
        table.add_row("1-bit networks, one per task", f"{alone:,}", f"{alone / base:.1%}", "")
        if floats:
            table.add_row("float networks, one per task", f"{floats:,}", f"{floats / base:.0%}", "")
    out.print(table)
    if args.layers and found:
        _show_layers(found, out)
    out.emit(
        {
            "file": path,
            "bytes": size,
            "base": base,
            "alone": alone,
            "float": floats or None,
            "tasks": [asdict(task) for task in found],
        }
    )
    return None


def _share(task: SharedTask) -> str:
    return f"{task.flips / task.weights:.2%}" if task.weights else "-"


def _show_layers(found: Sequence[SharedTask], out: Output) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("flipped bits of layer")
    for task in found:
        table.add_column(task.name, justify="right")
    for layer in dict.fromkeys(layer for task in found for layer in task.layers):
        pairs = (task.layers.get(layer) for task in found)
        table.add_row(layer, *("-" if p is None else f"{p[0] / p[1]:.2%}" for p in pairs))
    out.print("")
    out.print(table)
