"""``binarize sensitivity``: measure the effect of binarizing each layer of a network."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.datasets import (
    add_data_options,
    has_split,
    held_out,
    make_loader,
    open_data,
    task_of,
)
from binarize.cli.networks import add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.cli.policy_options import add_override_options, overrides
from binarize.errors import BinarizeError
from binarize.extras import require

if TYPE_CHECKING:
    from binarize.cli.sensitivity_record import Record
    from binarize.cli.sources import Source
    from binarize.report import Sensitivity
    from binarize.sensitivity import Study

__all__ = ["add", "run"]

_DESCRIPTION = """\
Binarize one layer of a trained network at a time (or with --mode without, all but one), re-estimate
the norm statistics, and compare with the float network: how far the output moves, and how much the
task's metric drops. Nothing is trained. Writes sensitivity.json, which convert --budget reads, and
a figure. An interrupted command resumes where it stopped."""

_EXAMPLES = [
    (
        "binarize sensitivity runs/float/float.safetensors --data camvid \\\n"
        "      --root data/camvid --output sensitivity",
        "each layer of a float network alone",
    ),
    (
        "binarize sensitivity runs/binary/binary.safetensors --mode without \\\n"
        "      --teacher runs/float/float.safetensors --data camvid --root data/camvid \\\n"
        "      --output gains",
        "what a trained 1-bit network gains from restoring each layer to float",
    ),
    (
        "binarize sensitivity runs/float/float.safetensors --policy reactnet \\\n"
        "      --data scenes --limit 16 --minutes 5 --output sensitivity --json",
        "with another method, on fewer images, for five minutes at most",
    ),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "sensitivity",
        run,
        help="measure the effect of binarizing each layer",
        usage="FILE --data NAME --output DIR",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "file", metavar="FILE", help="a trained network: float, or for --mode without 1-bit"
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for numbers and figure"
    )
    parser.add_argument(
        "--policy",
        metavar="NAME|FILE",
        help="the policy (default bidense, or a 1-bit network's own)",
    )
    parser.add_argument(
        "--more-bits",
        action="append",
        default=[],
        metavar="NAME|FILE",
        help="also measure layers in 8 bits (int8) or with a multi-bit policy, such as groupnet or "
        "lqnet, for convert --more-bits; each takes as long again",
    )
    parser.add_argument(
        "--mode",
        default="alone",
        metavar="MODE",
        help="alone: one layer binary, the default; without: all binary but one",
    )
    parser.add_argument(
        "--teacher", metavar="FILE", help="the float network that a 1-bit one was converted from"
    )
    add_override_options(parser)
    parser.add_argument(
        "--split", help="images to measure on: train, val or test (default val, else test)"
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=64,
        metavar="N",
        help="number of images, evenly spread over the split (default 64)",
    )
    parser.add_argument(
        "--recalibrate",
        type=int,
        default=8,
        metavar="N",
        help="batches of the training split to re-estimate the norms on (default 8)",
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="default 8")
    parser.add_argument(
        "--minutes",
        type=float,
        metavar="M",
        help="stop after this time and write the results so far",
    )
    parser.add_argument("--fresh", action="store_true", help="start over instead of resuming")
    parser.add_argument(
        "--model", metavar="MODEL", help="the network, if the file does not name it (see train)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    parser.set_defaults(teacher_model=None)
    add_data_options(parser)
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Measure, show and write."""
    require("matplotlib")
    _check(args)
    import torch

    from binarize.cli.records import make_folder
    from binarize.cli.sensitivity_record import Record
    from binarize.cli.sources import open_file
    from binarize.cli.start import open_teacher, try_out
    from binarize.sensitivity import Study
    from binarize.train import open_task

    if args.threads:
        torch.set_num_threads(args.threads)
    fallback = None if args.model is None else recipe_from(args, args.model)
    with out.step(f"loading {args.file}"):
        source = open_file(args.file, fallback)
    teacher = None
    if args.teacher is not None:
        teacher = open_teacher(args, args.teacher, source.recipe, args.classes, out)
    task_name = task_of(args, source.settings)
    if args.split is None and has_split(args, "val"):
        args.split = "val"
    split, _ = held_out(args, out)
    data, classes, depth = _batches(args, source, split, args.limit, out)
    calibration, _, _ = _batches(args, source, "train", args.recalibrate * args.batch_size, out)
    try_out(source.network, data[0]["image"][:1])
    task = open_task(task_name, num_classes=classes, max_depth=depth)
    make_folder(args.output)
    with out.step("tracing, planning, and running the float network"):
        study = Study(
            source.network,
            data,
            task=task,
            policy=args.policy,
            mode=args.mode,
            overrides=overrides(args),
            more_bits=args.more_bits,
            calibration=calibration,
            teacher=teacher,
        )
    record = Record(args.output / "sensitivity.partial.jsonl", _basis(args, split))
    if args.fresh:
        record.rows.clear()
    _measure(args, study, record, out)
    result = study.result([record.rows[site] for site in study.sites if site in record.rows])
    with out.step(f"writing into {args.output}"):
        files = result.save(args.output)
    if len(result.sites) == result.planned:
        record.remove()
    _show(result, out)
    out.print(f"written: {', '.join(map(str, files))}", wrap=False)
    out.emit({**result.to_dict(), "files": files})
    return None


def _check(args: argparse.Namespace) -> None:
    for name, least in (
        ("limit", 1),
        ("recalibrate", 1),
        ("batch_size", 1),
        ("threads", 1),
        ("minutes", 0),
    ):
        value = getattr(args, name)
        if value is not None and value < least:
            raise BinarizeError(
                name.replace("_", "-"), value, f"must be at least {least}", "give a larger number"
            )


def _batches(
    args: argparse.Namespace, source: Source, split: str, count: int, out: Output
) -> tuple[list[Any], int, float | None]:
    """Return batches of images evenly spread over a split, because neighbours are often similar."""
    from torch.utils.data import Subset

    whole = open_data(args, split, out, known=source.settings, preload=False)
    count = min(count, len(whole))
    some: Any = Subset(whole, [number * len(whole) // count for number in range(count)])
    made = []
    with out.bar(f"reading {count} images ({split})", count) as move:
        for batch in make_loader(some, args.batch_size, workers=args.workers):
            made.append(batch)
            move(min(len(made) * args.batch_size, count), count)
    return made, whole.num_classes, whole.max_depth


def _basis(args: argparse.Namespace, split: str) -> dict[str, Any]:
    """Return what the rows depend on, with dates to detect replaced files."""
    import torch

    from binarize import __version__
    from binarize.policy import load_policy
    from binarize.policy.more_bits import more_bits_rules

    keys = [
        *(
            "mode",
            "keep",
            "int8",
            "binarize",
            "limit",
            "recalibrate",
            "batch_size",
            "model",
            "model_arg",
        ),
        *("data", "root", "task", "size", "normalize", "count", "classes"),
    ]
    files = [path for path in (args.file, args.teacher) if path is not None]
    stats = [Path(path).expanduser().stat() for path in files]
    return {
        "versions": [__version__, torch.__version__],
        "policy": None if args.policy is None else load_policy(args.policy).to_dict(),
        "more_bits": {
            name: dict(rule.unit) or rule.action
            for name, rule in more_bits_rules(args.more_bits).items()
        },
        "files": [[stat.st_size, stat.st_mtime_ns] for stat in stats],
        "split": split,
        **{key: getattr(args, key) for key in keys},
    }


def _measure(args: argparse.Namespace, study: Study, record: Record, out: Output) -> None:
    missing = [site for site in study.sites if site not in record.rows]
    total = len(study.sites)
    done = total - len(missing)
    if done and missing:
        out.note(f"resuming: {done} of {total} layers are done")
    end = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    with out.bar(f"measuring {total} layers", total) as move:
        move(done, total)
        for site in missing:
            # At least one, so that a repeated command finishes eventually.
            if end is not None and record.rows and time.monotonic() > end:
                break
            record.add(study.measure(site))
            done += 1
            move(done, total)


def _show(result: Sensitivity, out: Output) -> None:
    from rich.table import Table

    from binarize.report.numbers import readable

    out.print(result.headline())
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")  # in a narrow terminal, names wrap first
    heads = ["weights", "distance", "±", "disagree"]
    if result.metric is not None:
        heads += [f"{result.metric} lost", "±"]
    heads += [f"distance, {name}" for name in result.more]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in result.ranked():
        cells = [readable(row.weights, ""), _number(row.distance), _number(row.distance_error)]
        cells.append(f"{row.disagreement:.1%}")
        if result.metric is not None:
            cells += [_number(row.drop), _number(row.drop_error)]
        cells += [_number(row.more.get(name, {}).get("distance")) for name in result.more]
        table.add_row(row.site, *cells)
    out.print(table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
