"""``binarize eval``: evaluate a saved network on a split of a data set."""

from __future__ import annotations

import argparse

from binarize.cli.datasets import add_data_options, held_out, make_loader, open_data, task_of
from binarize.cli.networks import add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.errors import BinarizeError

__all__ = ["add", "run"]

_DESCRIPTION = """\
Evaluate a network on images with masks or depth. Files written by binarize name their network;
the training's task, size and normalisation come from the file or the metrics.json beside it, and
options override them."""

_EXAMPLES = [
    (
        "binarize eval runs/binary/binary.safetensors --data camvid --root data/camvid",
        "the test split, at the size it was trained at",
    ),
    (
        "binarize eval runs/float/float.safetensors --data scenes --split val --json",
        "the validation split; the result as JSON",
    ),
    (
        "binarize eval mine.safetensors --model nets.py:make --classes 4 \\\n"
        "      --data folder --root data/mine --size 256x192",
        "your own network, on a folder of images and masks",
    ),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "eval",
        run,
        help="evaluate a saved network on a data set",
        usage="FILE --data NAME",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="a file of weights, float or binary")
    parser.add_argument(
        "--model", metavar="MODEL", help="the network, if the file does not name it (see train)"
    )
    add_network_options(parser)
    add_data_options(parser, original=True)
    parser.add_argument("--split", help="train, val or test (default test, else val)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="default 16")
    parser.add_argument(
        "--packed", action="store_true", help="pack the network and run it on XNOR-popcount kernels"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Measure."""
    for name in ("batch_size", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise BinarizeError(name.replace("_", "-"), value, "must be positive", "use 1 or more")
    import torch

    from binarize.cli.records import show_metrics
    from binarize.cli.sources import open_file
    from binarize.cli.start import try_out
    from binarize.data.collate import pad_to_multiple
    from binarize.train import Trainer

    if args.threads:
        torch.set_num_threads(args.threads)
    fallback = None if args.model is None else recipe_from(args, args.model)
    with out.step(f"loading {args.file}"):
        source = open_file(args.file, fallback, packed=args.packed, deployed=True)
    task = task_of(args, source.settings)
    split, called = held_out(args, out)
    data = open_data(args, split, out, known=source.settings)
    image = data[0]["image"][None]
    try_out(source.network, image if data.size else pad_to_multiple(image))
    trainer = Trainer(source.network, task=task, progress=not out.quiet)
    values = trainer.evaluate(make_loader(data, args.batch_size, workers=args.workers))
    show_metrics({called: values}, out, data.classes)
    out.emit(
        {
            "file": args.file,
            "data": args.data,
            "split": called,
            "task": task,
            "size": f"{data.size[1]}x{data.size[0]}" if data.size else "original",
            "images": len(data),
            "classes": list(data.classes),
            "binary": source.binary,
            "metrics": values,
        }
    )
    return None
