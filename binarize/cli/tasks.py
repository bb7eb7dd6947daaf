"""``binarize tasks``: list and remove the tasks that share a file's bits."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command

__all__ = ["add"]

_DESCRIPTION = """\
One file can hold a 1-bit network and further tasks that share its bits; each adds its flipped bits
and its own thresholds, norms and output layers only. binarize train --add-task trains one. Every
command takes a task as FILE#TASK."""

_EXAMPLES = [
    ("binarize tasks runs/labels/binary.safetensors", "what is in a file, and what each adds"),
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
    parser.add_argument("--remove", metavar="NAME", help="remove this task from the file")


def run(args: argparse.Namespace, out: Output) -> int | None:
    """List the tasks, after removing one."""
    from rich.table import Table

    from binarize.file import remove_task, tasks
    from binarize.file.stored import read_stored

    path = args.file.expanduser()
    read_stored(path)  # rejects other files
    if args.remove is not None:
        remove_task(path, args.remove)
    found = tasks(path)
    size = path.stat().st_size
    base = size - sum(task.bytes for task in found)
    table = Table(box=None, pad_edge=False)
    for title in ("network", "bytes", "of the base", "flipped bits"):
        table.add_column(title, justify="left" if title == "network" else "right")
    table.add_row("base", f"{base:,}", "", "")
    for task in found:
        share = f"{task.flips / task.weights:.2%}" if task.weights else "-"
        table.add_row(task.name, f"{task.bytes:,}", f"{task.bytes / base:.1%}", share)
    table.add_row("file", f"{size:,}", "", "")
    out.print(table)
    out.emit({"file": path, "bytes": size, "base": base, "tasks": [asdict(t) for t in found]})
    return None
