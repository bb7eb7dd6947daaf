"""``binarize frontier``: from a float network to trained networks of every size and speed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.datasets import add_data_options
from binarize.cli.networks import Recipe, add_network_options, build
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command, extent, pair
from binarize.cli.policy_options import overrides
from binarize.cli.train_options import (
    add_augment_options,
    add_start_options,
    add_training_options,
)
from binarize.errors import BinarizeError
from binarize.extras import require

if TYPE_CHECKING:
    from torch import Tensor

    from binarize.cli.sources import Source

__all__ = ["add", "run"]

_DESCRIPTION = """\
From one trained float network to a set of trained, saved networks along the frontier of accuracy,
time and size. Measures sensitivities and latencies, chooses a treatment for each layer within each
budget, trains each network with the float one as its teacher, then times all of them in turns
beside the float network in float32, bfloat16 (on processors that have it) and, where they are
installed, int8 of OpenVINO (with nncf) and ONNX Runtime. Everything that was finished is kept: the
same command goes on where it stopped. Takes the options of train for the trainings."""

_EXAMPLES = [
    (
        "binarize frontier runs/float/float.safetensors --data camvid \\\n"
        "      --root data/camvid --size 192x144 --bench-size 480x352 --threads 1 \\\n"
        "      --epochs 25 --lr 0.004 --output runs/frontier",
        "the policies bidense and deploy, and three budgets",
    ),
    (
        "binarize frontier runs/float/float.safetensors --data camvid \\\n"
        "      --root data/camvid --point deploy --point time=25%,4MB --epochs 25 \\\n"
        "      --rival 'smp:Unet:resnet18,decoder_channels=[64,32,16,8,4]' \\\n"
        "      --output runs/frontier",
        "two points of your own, and a narrower float network",
    ),
]

POINTS = ("bidense", "deploy", "5%", "7%", "10%")


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "frontier",
        run,
        help="train networks along the frontier of accuracy, time and size",
        usage="FILE --data NAME --output DIR",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument("file", metavar="FILE", help="the float network, as train saved it")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for everything written"
    )
    parser.add_argument(
        "--point",
        action="append",
        metavar="POLICY|BUDGET",
        help="a network to train: a policy's, or one within a budget "
        f"(default {', '.join(POINTS)})".replace("%", "%%"),
    )
    parser.add_argument(
        "--policy",
        default="deploy",
        metavar="NAME|FILE",
        help="how layers within budgets become binary (default deploy)",
    )
    parser.add_argument(
        "--rival",
        action="append",
        default=[],
        metavar="MODEL[,KEY=VALUE]",
        help="another float network, such as a narrower one, to be trained and measured alike",
    )
    parser.add_argument(
        "--bench-size",
        type=extent,
        metavar="WxH",
        help="size of the images that are timed (default: that of --size)",
    )
    parser.add_argument(
        "--rounds", type=int, default=15, metavar="N", help="timed runs of each (default 15)"
    )
    parser.add_argument(
        "--sensitivity-images",
        type=int,
        default=32,
        metavar="N",
        help="images that sensitivities are measured on (default 32)",
    )
    parser.add_argument(
        "--no-engines", action="store_true", help="leave out OpenVINO and ONNX Runtime"
    )
    add_network_options(parser)
    add_start_options(parser)
    add_data_options(parser)
    add_augment_options(parser)
    add_training_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Choose, train, measure, write."""
    require("matplotlib")
    from binarize.budget import Budget
    from binarize.cli.frontier_measure import measure
    from binarize.cli.records import make_folder
    from binarize.cli.sources import open_file
    from binarize.policy import load_policy, policies

    for name in ("rounds", "threads", "sensitivity_images"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise BinarizeError(name.replace("_", "-"), value, "must be at least 1", "correct it")
    load_policy(args.policy)
    plans = list(dict.fromkeys(args.point or POINTS))
    known = policies()
    for name in plans:
        if name not in known and not name.endswith(".toml"):
            Budget.parse(name)
    rivals = {text: _rival(text) for text in dict.fromkeys(args.rival)}
    with out.step(f"opening {args.file}"):
        source = open_file(args.file)
    if source.binary or source.recipe is None:
        raise BinarizeError(
            "file",
            args.file,
            "the frontier starts from a float network that train saved",
            "give float.safetensors of binarize train --policy none",
        )
    for rival in rivals.values():
        build(replace(rival, classes=source.recipe.classes, in_channels=source.recipe.in_channels))
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    make_folder(args.output)
    budgets = [name for name in plans if name not in known and not name.endswith(".toml")]
    guide: dict[str, Any] = {}
    if budgets:
        guide = {
            "sensitivity": _sensitivity(args, out),
            "profile": _profile(args, source, budgets, out),
            "more_bits": ["int8"],
        }
    # All of them, before anything is trained: a budget may be out of reach.
    chosen = {name: _choose(args, source, name, guide, out) for name in budgets}
    for number, name in enumerate([*plans, *rivals], start=1):
        out.note(f"network {number} of {len(plans) + len(rivals)}: {name}")
        folder = args.output / _slug(name)
        if name in rivals:
            _train(args, source.recipe, folder, out, rival=rivals[name])
        else:
            _train(args, source.recipe, folder, out, policy=str(chosen.get(name, name)))
    example = _image(args, source)
    folders = {name: args.output / _slug(name) for name in (*plans, *rivals)}
    made = measure(args, source, example, folders, rivals, out)
    files = made.save(args.output)
    out.print(str(made), wrap=False)
    out.print(f"written: {', '.join(str(args.output / name) for name in files)}", wrap=False)
    out.emit(made.to_dict())
    return None


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=-]+", "_", name).strip("_")


def _rival(text: str) -> Recipe:
    """A specification with arguments; commas inside brackets do not part them."""
    parts = re.split(r",(?![^\[(]*[\])])", text)
    return Recipe(parts[0], arguments=dict(pair(part) for part in parts[1:]))


# The steps, each skipped where its result is there


def _sensitivity(args: argparse.Namespace, out: Output) -> Path:
    from binarize.cli import sensitivity
    from binarize.cli.app import build_parser

    path: Path = args.output / "sensitivity.json"
    if not path.exists():
        words = ["sensitivity", args.file, "--data", args.data, "--output", str(args.output)]
        given = build_parser().parse_args(words)
        for name in vars(given).keys() & vars(args).keys() - {"run", "parser", "batch_size"}:
            setattr(given, name, getattr(args, name))
        given.more_bits, given.limit = ["int8"], args.sensitivity_images
        given.model = given.teacher = None
        sensitivity.run(given, out.of_a_step())
    return path


def _profile(
    args: argparse.Namespace, source: Source, budgets: list[str], out: Output
) -> Path | None:
    from binarize.budget import Budget
    from binarize.latency import Profile, profile
    from binarize.latency.measure import machine

    if not any(limit.kind.startswith("time") for name in budgets for limit in Budget.parse(name)):
        return None
    path: Path = args.output / "profile.json"
    if path.exists():
        Profile.load(path).check(machine())
        return path
    with out.bar("measuring latencies", 9) as move:
        made = profile(source.network, _image(args, source), policy=args.policy, tell=move)
    made.save(path)
    return path


def _choose(
    args: argparse.Namespace, source: Source, name: str, guide: Mapping[str, Any], out: Output
) -> Path:
    """The rules that spend a budget, as a file."""
    from binarize.budget import plan
    from binarize.cli.examples import example_for

    path: Path = args.output / f"{_slug(name)}.toml"
    if not path.exists():
        with out.step(f"choosing within {name}"):
            example = example_for(source.network, source.recipe, args.size)
            made = plan(
                source.network,
                args.policy,
                example_inputs=example,
                overrides=overrides(args),
                budget=name,
                **guide,
            )
        made.policy.save(path)
    return path


def _image(args: argparse.Namespace, source: Source) -> Tensor:
    """An image of the size that is timed."""
    import torch

    given = args.bench_size or args.size
    rows, columns = given or source.size or (224, 224)
    channels = 3 if source.recipe is None else source.recipe.in_channels
    return torch.randn(1, channels, rows, columns, generator=torch.Generator().manual_seed(0))


def _train(
    args: argparse.Namespace,
    recipe: Recipe,
    folder: Path,
    out: Output,
    *,
    policy: str = "none",
    rival: Recipe | None = None,
) -> None:
    """Train one network with the float one as its teacher, or go on with it, or leave it."""
    from binarize.cli import train

    if (folder / "metrics.json").exists() and any(folder.glob("*.safetensors")):
        return
    network = recipe if rival is None else rival
    given = argparse.Namespace(**vars(args))
    given.model, given.model_arg = network.spec, list(network.arguments.items())
    given.classes, given.in_channels = recipe.classes, recipe.in_channels
    given.output, given.policy = folder, policy
    given.init = Path(args.file) if rival is None else None
    given.teacher, given.teacher_model = args.file, None
    given.resume = folder if (folder / "last.pt").exists() else None
    given.overwrite = given.resume is None
    if rival is not None:
        given.encoder_weights = None
    if rival is not None or policy.endswith(".toml"):  # the rules have the overrides
        given.keep, given.binarize, given.int8 = [], [], []
    train.run(given, out.of_a_step())
