"""``binarize frontier``: from a float network to trained networks of every size and speed."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.datasets import add_data_options, has_split, make_loader, open_data, task_of
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
    from binarize.report.frontier import Frontier
    from binarize.report.sensitivity import Sensitivity

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
        "      --rival smp:Unet:mobilenet_v2,encoder_weights=mobilenet_v2.safetensors \\\n"
        "      --output runs/frontier",
        "two points of your own, a narrower float network, and one of another kind",
    ),
]

_WEIGHTS = "encoder_weights="


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
        "(default bidense, deploy, 5%%, 7%%, 10%%)",
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
        help="another float network, such as a narrower one, to be trained and measured alike; "
        "encoder_weights=FILE gives weights for its encoder",
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
    from binarize.cli.examples import example_for
    from binarize.cli.records import make_folder
    from binarize.cli.sources import open_file
    from binarize.cli.weights import load_encoder
    from binarize.frontier.build import POINTS, Choice, budgets_of, limit_latency, slug
    from binarize.policy import load_policy

    for name in ("rounds", "threads", "sensitivity_images"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise BinarizeError(name.replace("_", "-"), value, "must be at least 1", "correct it")
    load_policy(args.policy)
    plans = list(dict.fromkeys(args.point or POINTS))
    budgets = budgets_of(plans)
    rivals = dict(map(_rival, args.rival))
    with out.step(f"opening {args.file}"):
        source = open_file(args.file)
    if source.binary or source.recipe is None:
        raise BinarizeError(
            "file",
            args.file,
            "the frontier starts from a float network that train saved",
            "give float.safetensors of binarize train --policy none",
        )
    for rival, weights in rivals.values():
        classes, channels = source.recipe.classes, source.recipe.in_channels
        network = build(replace(rival, classes=classes, in_channels=channels))
        if weights is not None:
            load_encoder(network, weights, "rival")
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    make_folder(args.output)
    example = example_for(source.network, source.recipe, args.size)
    choice = Choice(source.network, args.policy, overrides(args), example, args.output)
    timed = _image(args, source)
    if budgets:
        choice.measure_sensitivity(lambda: _sensitivity(args, out))
    if limit_latency(budgets):
        with out.bar("measuring latencies", 9) as move:
            choice.measure_latency(timed, move)
    # All of them, before anything is trained: a budget may be out of reach.
    chosen = {}
    for name in budgets:
        with out.step(f"choosing within {name}"):
            chosen[name] = choice.rules(name)
    for number, name in enumerate([*plans, *rivals], start=1):
        out.note(f"network {number} of {len(plans) + len(rivals)}: {name}")
        folder = args.output / slug(name)
        if name in rivals:
            _train(args, source.recipe, folder, out, rival=rivals[name])
        else:
            _train(args, source.recipe, folder, out, policy=str(chosen.get(name, name)))
    made = _measure(args, source, timed, plans, list(rivals), out)
    files = made.save(args.output)
    out.print(str(made), wrap=False)
    out.print(f"written: {', '.join(str(args.output / name) for name in files)}", wrap=False)
    out.emit(made.to_dict())
    return None


def _rival(text: str) -> tuple[str, tuple[Recipe, Path | None]]:
    """Read a specification with arguments; commas inside brackets do not part them.

    Returns:
        Its name, how it is built, and the file of its encoder's weights.
    """
    spec, *parts = re.split(r",(?![^\[(]*[\])])", text)
    own = [part for part in parts if not part.startswith(_WEIGHTS)]
    files = [Path(part.removeprefix(_WEIGHTS)) for part in parts if part.startswith(_WEIGHTS)]
    recipe = Recipe(spec, arguments=dict(map(pair, own)))
    return ",".join([spec, *own]), (recipe, files[-1] if files else None)


def _sensitivity(args: argparse.Namespace, out: Output) -> Sensitivity:
    from binarize.cli import sensitivity
    from binarize.cli.app import build_parser
    from binarize.report.sensitivity import Sensitivity

    words = ["sensitivity", args.file, "--data", args.data, "--output", str(args.output)]
    given = build_parser().parse_args(words)
    for name in vars(given).keys() & vars(args).keys() - {"run", "parser", "batch_size"}:
        setattr(given, name, getattr(args, name))
    given.more_bits, given.limit = ["int8"], args.sensitivity_images
    given.model = given.teacher = None
    sensitivity.run(given, out.of_a_step())
    return Sensitivity.load(args.output / "sensitivity.json")


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
    rival: tuple[Recipe, Path | None] | None = None,
) -> None:
    """Train one network with the float one as its teacher, or go on with it, or leave it."""
    from binarize.cli import train

    if (folder / "metrics.json").exists() and any(folder.glob("*.safetensors")):
        return
    network, weights = (recipe, args.encoder_weights) if rival is None else rival
    given = argparse.Namespace(**vars(args))
    given.model, given.model_arg = network.spec, list(network.arguments.items())
    given.classes, given.in_channels = recipe.classes, recipe.in_channels
    given.output, given.policy = folder, policy
    given.init = Path(args.file) if rival is None else None
    given.teacher, given.teacher_model = [args.file], None
    given.resume = folder if (folder / "last.pt").exists() else None
    given.overwrite = given.resume is None
    given.encoder_weights = weights
    if rival is not None or policy.endswith(".toml"):  # the rules have the overrides
        given.keep, given.binarize, given.int8 = [], [], []
    train.run(given, out.of_a_step())


def _measure(
    args: argparse.Namespace,
    source: Source,
    example: Tensor,
    plans: Sequence[str],
    rivals: Sequence[str],
    out: Output,
) -> Frontier:
    """Time the networks in turns, beside the float one."""
    from binarize.cli.sources import open_file
    from binarize.frontier.build import slug
    from binarize.frontier.measure import Judge, Trained, measure
    from binarize.train import open_task

    splits = [split for split in ("val", "test") if has_split(args, split)]
    data = {split: open_data(args, split, out, known=source.settings) for split in splits}
    first = next(iter(data.values()))
    name = task_of(args, source.settings)
    task = open_task(name, num_classes=first.num_classes, max_depth=first.max_depth)
    train = open_data(args, "train", out, known=source.settings, preload=False)
    count = min(32, len(train))
    images = [train[i * len(train) // count]["image"][None] for i in range(count)]
    loaders = {split: make_loader(one, 1) for split, one in data.items()}

    def trained(names: Sequence[str], file: str) -> dict[str, Trained]:
        made = {}
        for name in names:
            path = args.output / slug(name) / file
            record = json.loads((path.parent / "metrics.json").read_text(encoding="utf-8"))
            metrics = {split: record[split] for split in splits if split in record}
            made[name] = Trained(open_file(str(path)).network, metrics, path)
        return made

    recipe: Any = source.recipe
    with out.bar("timing the networks", args.rounds) as move:
        return measure(
            source.network,
            example,
            Judge(task, loaders, images),
            binarized=trained(plans, "binary.safetensors"),
            rivals=trained(rivals, "float.safetensors"),
            folder=args.output,
            label=recipe.spec,
            rounds=args.rounds,
            engines=not args.no_engines,
            tell=move,
        )
