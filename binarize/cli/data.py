"""``binarize data``: check a data set before training on it."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.datasets import add_data_options, open_data, task_of
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.errors import BinarizeError, DataError

if TYPE_CHECKING:
    from binarize.data import DenseDataset
    from binarize.data.checking import Problem, SplitFacts

__all__ = ["add", "run"]

_DESCRIPTION = """\
Read a data set before training on it. Every command takes data in the same way: --data NAME
--root DIR."""

_CHECK = """\
Read every image, mask and depth map of a data set once, in parallel, and report what is in it and
what is wrong: files that cannot be read, images without a mask and masks without an image, pairs of
different size, labels out of range, classes that no pixel has, depth out of range. Exit code 1 if
anything is wrong. Nothing is changed."""

_CHECK_EXAMPLES = [
    ("binarize data check photos", "a folder of images with masks or depth maps"),
    ("binarize data check --data cityscapes --root data/cityscapes", "a public data set"),
    (
        "binarize data check photos --task depth --depth-scale 0.001 --json",
        "depth in millimetres; the result as JSON",
    ),
    ("binarize data check --data camvid --root data/camvid --split val", "one split of it"),
]

_SHOWN_PROBLEMS = 8
_SHOWN_SIZES = 5
_SHOWN_CLASSES = 40
_REMEDIES = {
    "unreadable": "replace {count} unreadable file{s}",
    "pair": "complete or correct {count} pair{s}",
    "label": "correct the labels of {count} file{s}, or the number of classes",
    "depth": "correct the depth of {count} file{s}, or its unit (--depth-scale)",
    "class": "add pixels of {count} class{es}, or train with --allow-empty-classes",
    "other": "correct {count} other error{s}",
}


def add(commands: Subparsers) -> None:
    """Add the command and its sub-command."""
    parser = add_command(
        commands,
        "data",
        _help,
        help="check a data set before training on it",
        usage="COMMAND",
        description=_DESCRIPTION,
        examples=_CHECK_EXAMPLES[:2],
        common=False,
    )
    verbs = parser.add_subparsers(
        title="commands", metavar="COMMAND", prog=parser.prog, parser_class=type(parser)
    )
    check = add_command(
        verbs,
        "check",
        run,
        help="report what a data set holds and what is wrong with it",
        usage="FOLDER | --data NAME",
        description=_CHECK,
        examples=_CHECK_EXAMPLES,
    )
    check.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="short for --data folder --root FOLDER"
    )
    check.add_argument("--split", help="train, val or test (default: all that the data set has)")
    check.add_argument("--classes", type=int, metavar="N", help="number of classes of a folder")
    check.add_argument(
        "--in-channels", type=int, default=3, metavar="N", help="bands of a folder (default 3, RGB)"
    )
    add_data_options(check, required=False, original=True)


def _help(args: argparse.Namespace, out: Output) -> int | None:
    args.parser.print_help()
    return None


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Check."""
    if (args.folder is None) == (args.data is None):
        raise BinarizeError(
            "data", args.data, "give a folder, or a data set by name", "FOLDER, or --data NAME"
        )
    if args.folder is not None:
        args.data, args.root = "folder", args.folder
    from binarize.data import dataset_splits

    _complete(args, out)
    args.size = args.size or (32, 32)  # samples are read at their own size
    splits = (args.split,) if args.split else dataset_splits(args.data, args.root, args.lists)
    checked = [_check(args, split, out) for split in splits]
    for facts in checked:
        _show(facts, out)
    counts = Counter(problem.kind for facts in checked for problem in facts.problems)
    advice = _advice(counts)
    out.print(advice)
    out.emit(
        {
            "data": args.data,
            "root": args.root,
            "task": task_of(args, {}),
            "problems": dict(counts),
            "advice": advice,
            "splits": [_plain(facts) for facts in checked],
        }
    )
    return 1 if counts else None


def _complete(args: argparse.Namespace, out: Output) -> None:
    """Find out what a folder holds, where the options do not say it."""
    if args.data != "folder" or args.root is None:
        return
    from binarize.data.checking import label_values
    from binarize.data.images import folder, image_files

    top = folder(args.root, "root")
    bases = [base for base in (top, *(top / s for s in ("train", "val", "test"))) if base.is_dir()]
    masks = [b / name for b in bases for name in ("masks", "labels") if (b / name).is_dir()]
    if args.task is None and not masks and any((base / "depth").is_dir() for base in bases):
        args.task = "depth"
    if args.classes is None and not (top / "classes.txt").is_file() and masks:
        if task_of(args, {}) == "multilabel":
            return  # opening says that names are needed
        with out.step("reading the labels, whose number is not given"):
            found = label_values(file for place in masks for file in image_files(place, "root"))
        inside = {value for value in found if 0 <= value < 255}
        args.classes = 2 if len(found) <= 2 else max(inside, default=1) + 1
        out.note(f"note: {args.classes} classes, judged by the labels (give --classes)")


def _check(args: argparse.Namespace, split: str, out: Output) -> SplitFacts:
    from binarize.data.checking import Problem, SplitFacts, check_split_files
    from binarize.data.pairs import collecting

    with collecting() as unpaired:
        try:
            data = _open(args, split, out)
        except DataError as error:
            facts = SplitFacts(split)
            facts.problems = [Problem.of(one, pairing=True) for one in unpaired]
            if not unpaired or error.argument != "data set":  # "no samples" follows from them
                facts.problems.append(Problem.of(error))
            return facts
    with out.bar(f"reading {len(data)} images ({split})", len(data)) as move:
        facts = check_split_files(data, split, move, args.workers)
    facts.problems[:0] = [Problem.of(error, pairing=True) for error in unpaired]
    return facts


def _open(args: argparse.Namespace, split: str, out: Output) -> DenseDataset:
    """Open a split; a folder of images alone has no targets."""
    if args.data == "folder":
        from binarize.data import UnlabelledFolder

        top = Path(args.root).expanduser()
        base = top / split if (top / split).is_dir() else top
        if not any((base / name).exists() for name in ("images", "masks", "labels", "depth")):
            return UnlabelledFolder(base, args.size)
        if not any((base / name).exists() for name in ("masks", "labels", "depth")):
            return UnlabelledFolder(base / "images", args.size)
    return open_data(args, split, out, preload=False)


def _show(facts: SplitFacts, out: Output) -> None:
    from rich.table import Table
    from rich.text import Text

    out.print(f"{facts.split}: {facts.images:,} images")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim")
    table.add_column()
    if facts.sizes:
        table.add_row("  sizes", _most(_sizes(facts.sizes), _SHOWN_SIZES))
    for key, kinds in facts.files.items():
        table.add_row(f"  {key} files", _most(kinds, _SHOWN_SIZES))
    if facts.orientations:
        turned = _most({f"tag {tag}": n for tag, n in facts.orientations.items()}, 8)
        table.add_row("  orientation", f"{turned}; images are turned upright when read")
    if facts.depth is not None and facts.depth.nearest is not None:
        depth = facts.depth
        table.add_row("  depth", f"{depth.nearest:.4g} to {depth.farthest:.4g} m")
        table.add_row("  unknown", f"{depth.unknown / max(1, depth.pixels):.1%} of the pixels")
        if depth.beyond:
            table.add_row("  too far", f"{depth.beyond / depth.pixels:.1%} of the pixels")
    out.print(table)
    if facts.pixels:
        _show_classes(facts, out)
    for kind in _REMEDIES:
        found = [problem for problem in facts.problems if problem.kind == kind]
        for problem in found[:_SHOWN_PROBLEMS]:
            out.print(Text(f"  {kind}: {problem.text}"), wrap=False)
        if len(found) > _SHOWN_PROBLEMS:
            out.print(f"  {kind}: ... and {len(found) - _SHOWN_PROBLEMS} more (--json lists all)")


def _show_classes(facts: SplitFacts, out: Output) -> None:
    from rich.table import Table
    from rich.text import Text

    total = max(1, sum(facts.pixels.values()) + facts.ignored)
    table = Table(box=None, pad_edge=False)
    table.add_column("  class")
    for title in ("pixels", "images"):
        table.add_column(title, justify="right")
    rows = list(facts.pixels.items())
    if len(rows) > _SHOWN_CLASSES:
        ranked = sorted(rows, key=lambda row: -row[1])
        rows = [*ranked[: _SHOWN_CLASSES // 2], *ranked[-_SHOWN_CLASSES // 2 :]]
    for name, pixels in rows:
        table.add_row(
            Text(f"  {name}"), f"{pixels / total:.2%}" if pixels else "-", f"{facts.seen[name]:,}"
        )
    table.add_row("  ignored", f"{facts.ignored / total:.2%}", "")
    out.print(table)
    if len(rows) < len(facts.pixels):
        hidden = len(facts.pixels) - len(rows)
        out.print(f"  {hidden} classes of medium frequency are not shown (--json lists all)")


def _sizes(sizes: Mapping[tuple[int, int], int]) -> dict[str, int]:
    return {f"{width}x{height}": count for (width, height), count in sizes.items()}


def _most(counts: Mapping[str, int], shown: int) -> str:
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    words = [f"{name} ({count:,})" for name, count in ranked[:shown]]
    rest = sum(count for _, count in ranked[shown:])
    return ", ".join(words) + (f", {len(ranked) - shown} others ({rest:,})" if rest else "")


def _advice(counts: Mapping[str, int]) -> str:
    """Return what to do, in one line."""
    if not counts:
        return "nothing is wrong: binarize train takes the same options"
    parts = [
        text.format(count=f"{n:,}", s="" if n == 1 else "s", es="" if n == 1 else "es")
        for kind, text in _REMEDIES.items()
        if (n := counts.get(kind, 0))
    ]
    return f"to do: {'; '.join(parts)}"


def _plain(facts: SplitFacts) -> dict[str, Any]:
    """Return a split's facts as JSON has them."""
    total = max(1, sum(facts.pixels.values()) + facts.ignored)
    return {
        "split": facts.split,
        "images": facts.images,
        "sizes": _sizes(facts.sizes),
        "files": facts.files,
        "orientations": {str(tag): count for tag, count in facts.orientations.items()},
        "classes": {
            name: {"pixels": pixels, "share": pixels / total, "images": facts.seen[name]}
            for name, pixels in facts.pixels.items()
        },
        "ignored": facts.ignored / total,
        "depth": None if facts.depth is None else asdict(facts.depth),
        "problems": [_problem(problem) for problem in facts.problems],
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return {"kind": problem.kind, "text": problem.text, "files": list(problem.files)}
