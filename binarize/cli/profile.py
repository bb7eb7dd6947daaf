"""``binarize profile``: what each layer costs packed, under each treatment, on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path

from binarize.cli.networks import FORMS, add_network_options, recipe_from
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command, extent
from binarize.cli.policy_options import add_override_options, overrides
from binarize.errors import BinarizeError, FileError

__all__ = ["add", "run"]

_DESCRIPTION = """\
Measure what each layer of a float network costs packed on this machine's CPU: in one bit, in eight
bits and in float, with the norm, activation and additions that follow it. convert --budget 12ms and
train --budget 12ms choose by these numbers. Latency depends on shapes, not on weights, so the
network need not be trained."""

_EXAMPLES = [
    (
        "binarize profile smp:Unet:resnet18 --classes 11 --size 480x352 --threads 1",
        "where does the time go?",
    ),
    (
        "binarize profile runs/float/float.safetensors --size 480x352 --policy deploy \\\n"
        "    -o profile.json",
        "for convert --budget 12ms --profile profile.json",
    ),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "profile",
        run,
        help="measure each layer's latency in 1 bit, 8 bits and float",
        usage="MODEL",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "model", metavar="MODEL", help=f"{FORMS}, or a float network that train saved"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it as JSON")
    parser.add_argument(
        "--policy", default="bidense", metavar="NAME|FILE", help="the rules (default bidense)"
    )
    add_override_options(parser)
    parser.add_argument(
        "--size",
        type=extent,
        metavar="WxH[xD]",
        help="size of the images (default: what it was trained on, else 224x224)",
    )
    parser.add_argument(
        "--rounds", type=int, default=9, metavar="N", help="timed runs of each version (default 9)"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads of torch (default: torch's own)"
    )
    add_network_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Measure."""
    for name in ("rounds", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise BinarizeError(name, value, "must be at least 1", "correct it")
    if args.output is not None and not args.output.parent.is_dir():
        raise FileError("output", str(args.output), "its folder does not exist", "make it first")
    import torch

    from binarize.cli.examples import example_for, shell_remedies
    from binarize.cli.sources import is_file, open_source
    from binarize.latency import profile
    from binarize.policy import load_policy

    load_policy(args.policy)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with out.step(f"opening {args.model}"):
        recipe = None if is_file(args.model) else recipe_from(args, args.model)
        source = open_source(args.model, recipe)
        size = args.size or source.size or (224, 224)
        example = example_for(source.network, source.recipe, size)
    with out.bar("measuring", args.rounds) as move, shell_remedies(args.model):
        made = profile(
            source.network.eval(),
            example,
            policy=args.policy,
            overrides=overrides(args),
            rounds=args.rounds,
            tell=move,
        )
    out.print(str(made), wrap=False)
    if args.output is not None:
        made.save(args.output)
        out.print(f"written: {args.output}", wrap=False)
    out.emit(made.to_dict())
    return None
