"""``binarize train``: train a float network, or make it binary and train that."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.datasets import add_data_options, has_split, make_loader, open_data, task_of
from binarize.cli.networks import FORMS, add_network_options, nearest, recipe_from
from binarize.cli.output import Output, jsonable
from binarize.cli.parser import Subparsers, add_command, pair
from binarize.errors import BinarizeError, FileError

if TYPE_CHECKING:
    from torch import nn

    from binarize.cli.networks import Recipe
    from binarize.data import DenseDataset
    from binarize.train import Trainer

__all__ = ["add", "run"]

_DESCRIPTION = """\
Train a network on images with masks or depth. With --policy none the network stays float; with
a policy it is converted first, from the weights it has by then (--encoder-weights, --init), its
norm statistics are measured anew, and it is trained, with a --teacher if one is given.

Writes into --output: last.pt and best.pt (for --resume), metrics.json (history, final metrics,
command line), and float.safetensors or binary.safetensors (one bit per binary weight)."""

_EXAMPLES = [
    (
        "binarize train --data scenes --model smp:Unet:resnet18 --policy none --epochs 5 "
        "--output runs/float",
        "a float network on made-up scenes",
    ),
    (
        "binarize train --data camvid --root data/camvid --size 192x144 "
        "--model smp:Unet:resnet18 \\\n      --encoder-weights resnet18.safetensors "
        "--epochs 25 --output runs/binary",
        "a 1-bit network on CamVid, its encoder started from pretrained weights",
    ),
    (
        "binarize train --data camvid --root data/camvid --size 192x144 "
        "--model smp:Unet:resnet18 \\\n      --init runs/float/float.safetensors "
        "--teacher runs/float/float.safetensors \\\n      --distill trust=agree "
        "--distill temperature=2 --output runs/distilled",
        "a 1-bit network that starts from a trained float one and learns from it",
    ),
    (
        "binarize train --data camvid --root data/camvid --model smp:Unet:resnet18 "
        "--output runs/binary --resume",
        "go on after an interruption",
    ),
    (
        "accelerate launch --num_processes 4 -m binarize train --data nyuv2 --root data/nyuv2 ...",
        "on several processes",
    ),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "train",
        run,
        help="train a float network, or convert one and train it",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help=f"{FORMS}; or a .safetensors file of a converted network, to train it further",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="folder for everything written"
    )
    parser.add_argument(
        "--policy",
        default="bidense",
        metavar="NAME|FILE",
        help="how to make it binary (default bidense); none trains the float network",
    )
    add_network_options(parser)
    _add_start_options(parser)
    add_data_options(parser)
    _add_augment_options(parser)
    _add_training_options(parser)


def _add_start_options(parser: argparse.ArgumentParser) -> None:
    start = parser.add_argument_group("start and teacher")
    start.add_argument(
        "--init",
        "--weights",
        dest="init",
        type=Path,
        metavar="FILE",
        help="float weights to start from (.safetensors, or a .pt checkpoint)",
    )
    start.add_argument(
        "--partial", action="store_true", help="--init may fit the network in parts only"
    )
    start.add_argument(
        "--encoder-weights", type=Path, metavar="FILE", help="backbone weights for its encoder"
    )
    start.add_argument(
        "--keep", action="append", default=[], metavar="PATTERN", help="layers that stay float"
    )
    start.add_argument(
        "--binarize", action="append", default=[], metavar="PATTERN", help="layers to make binary"
    )
    start.add_argument("--teacher", metavar="FILE", help="weights of the network to learn from")
    start.add_argument(
        "--teacher-model", metavar="MODEL", help="the teacher's network (default: --model)"
    )
    start.add_argument(
        "--distill",
        type=pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="distillation setting: weight, temperature, channel_weight, trust (agree, mix, all), "
        "schedule (cosine, linear, constant), ...; for depth weight, gradient_weight, tolerance",
    )
    start.add_argument(
        "--recalibrate",
        type=int,
        default=8,
        metavar="N",
        help="batches to measure the norms on after a conversion (default 8, 0 for none)",
    )


def _add_augment_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("augmentation")
    group.add_argument("--flip", type=float, default=0.5, metavar="P", help="default 0.5")
    group.add_argument("--zoom", type=float, default=1.0, metavar="Z", help="largest; default 1")
    group.add_argument("--jitter", type=float, default=0.0, metavar="J", help="colour; default 0")


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=int, default=25, metavar="N", help="default 25")
    group.add_argument("--batch-size", type=int, default=16, metavar="N", help="default 16")
    group.add_argument("--lr", type=float, default=2e-3, metavar="X", help="peak; default 0.002")
    group.add_argument("--weight-decay", type=float, default=1e-2, metavar="X")
    group.add_argument("--clip", type=float, metavar="X", help="largest norm of the gradient")
    group.add_argument("--warmup", type=float, default=0.3, metavar="SHARE", help="default 0.3")
    group.add_argument("--bf16", action="store_true", default=None, help="bfloat16 autocast")
    group.add_argument("--compile", action="store_true", help="use torch.compile")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    group.add_argument(
        "--val-every", type=int, default=1, metavar="N", help="validate every N epochs (default 1)"
    )
    group.add_argument(
        "--final",
        choices=("last", "best"),
        default="last",
        help="which epoch's weights are saved and measured (default last)",
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="go on from --output's last.pt if there is one, or from FILE",
    )


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Train, measure, save."""
    _refuse(args)
    import torch

    main = os.environ.get("RANK", "0") == "0"
    if not main:
        out = Output(quiet=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    task = task_of(args, {})
    distillation = _distillation(task, args.distill)
    augment = _augment(args)
    _writable(args.output)

    train = open_data(args, "train", out, augment=augment)
    val = open_data(args, "val", out) if has_split(args, "val") else None
    test = open_data(args, "test", out) if has_split(args, "test") else None
    loader = make_loader(train, args.batch_size, train=True, workers=args.workers)

    torch.manual_seed(args.seed)
    classes = args.classes or (train.num_classes if task == "segmentation" else 1)
    student, recipe, told = _student(args, classes, loader, out)
    teacher = _teacher(args, recipe, classes, out)

    from binarize.train import Trainer

    trainer = Trainer(
        student,
        teacher=teacher,
        task=task,
        epochs=args.epochs,
        lr=args.lr,
        weight_decay=args.weight_decay,
        warmup=args.warmup,
        clip=args.clip,
        distillation=distillation,
        bf16=args.bf16,
        compile=args.compile,
        output_dir=args.output,
        resume=args.resume,
        seed=args.seed,
        val_every=args.val_every,
        keep=args.final,
        progress=False if out.quiet else None,
    )
    watched = val if val is not None else test
    started = time.perf_counter()
    try:
        trainer.fit(
            loader,
            None if watched is None else make_loader(watched, args.batch_size),
        )
    except KeyboardInterrupt:
        out.note(f"stopped; go on with the same command and --resume ({args.output}/last.pt)")
        raise
    results = {
        name: trainer.evaluate(make_loader(data, args.batch_size))
        for name, data in (("val", val), ("test", test))
        if data is not None
    }
    if not main:
        return None
    record = _record(args, task, train, recipe, told, trainer, results)
    record["seconds"] = round(time.perf_counter() - started, 1)
    _save(args.output, student, record, out)
    _show(record, args.output, out)
    out.emit(record)
    return None


def _refuse(args: argparse.Namespace) -> None:
    """Tell mistakes that need no data and no network, before anything slow happens."""
    for name, value in (("recalibrate", args.recalibrate), ("seed", args.seed)):
        if value < 0:
            raise BinarizeError(name, value, "must not be negative", "use 0 or more")
    for name, value in (
        ("epochs", args.epochs),
        ("batch-size", args.batch_size),
        ("lr", args.lr),
        ("val-every", args.val_every),
        ("threads", args.threads),
    ):
        if value is not None and not value > 0:
            raise BinarizeError(name, value, "must be positive", "choose a larger value")
    if not 0 <= args.warmup <= 1:
        raise BinarizeError("warmup", args.warmup, "must be from 0 to 1", "use e.g. 0.3")
    if args.policy == "none":
        if args.keep or args.binarize:
            raise BinarizeError(
                "policy", "none", "--keep and --binarize need a policy", "leave one of them out"
            )
    else:
        from binarize.policy import load_policy

        load_policy(args.policy)
    if args.distill and args.teacher is None:
        raise BinarizeError("distill", args.distill, "needs a teacher", "give --teacher FILE")


def _writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            "output",
            str(folder),
            f"cannot be made ({error.strerror})",
            "choose a folder that can be written to",
        ) from error
    if not os.access(folder, os.W_OK):
        raise FileError("output", str(folder), "cannot be written to", "choose another folder")


def _augment(args: argparse.Namespace) -> Any:
    from binarize.data import Augment

    augment = Augment(flip=args.flip, zoom=args.zoom, jitter=args.jitter)
    return augment if args.flip or args.jitter or args.zoom > 1 else False


def _distillation(task: str, given: list[tuple[str, Any]]) -> Any:
    """Make the distillation loss of KEY=VALUE settings; None leaves it to the task."""
    import inspect

    from binarize.train import DepthDistillation, SegmentationDistillation, open_task

    open_task(task, num_classes=2)  # refuses an unknown task
    if not given:
        return None
    cls: Any = SegmentationDistillation if task == "segmentation" else DepthDistillation
    known = [name for name in inspect.signature(cls).parameters if name != "ignore_index"]
    for key, _ in given:
        if key not in known:
            raise BinarizeError("distill", key, f"{task} has no such setting", nearest(key, known))
    try:
        return cls(**dict(given))
    except TypeError as error:
        raise BinarizeError(
            "distill", dict(given), f"a value has the wrong type ({error})", "give a number"
        ) from error


def _student(
    args: argparse.Namespace, classes: int, loader: Any, out: Output
) -> tuple[nn.Module, Recipe | None, dict[str, Any]]:
    """Build the network, load what it starts from, convert it."""
    from binarize.cli.sources import is_file, open_source
    from binarize.cli.unfold import unfold_norms
    from binarize.cli.weights import load_encoder, load_weights
    from binarize.train import recalibrate

    told: dict[str, Any] = {}
    if is_file(args.model):
        source = open_source(args.model)
        if source.binary or args.policy == "none":
            for name in ("init", "encoder_weights"):
                if getattr(args, name) is not None:
                    raise BinarizeError(
                        name.replace("_", "-"),
                        str(getattr(args, name)),
                        "cannot be loaded over the file given as --model",
                        "leave one of them out",
                    )
            return source.network, source.recipe, told
        network, recipe = source.network, source.recipe
    else:
        recipe = recipe_from(args, args.model, classes)
        source = open_source(args.model, recipe)
        network = source.network
    if args.encoder_weights is not None:
        with out.step("loading the encoder's weights"):
            matched = load_encoder(network, args.encoder_weights)
        out.note(f"encoder: {matched}")
        told["encoder_tensors"] = matched.loaded
        told["norms_unfolded"] = unfold_norms(network, _some(loader, args.recalibrate))
    if args.init is not None:
        matched = load_weights(network, args.init, partial=args.partial, argument="init")
        out.note(f"start: {matched}")
    if args.policy == "none":
        return network, recipe, told

    import binarize

    example = next(iter(loader))["image"][:1]
    with out.step(f"converting by policy {args.policy}"):
        student = binarize.convert(
            network, args.policy, example_inputs=example, overrides=overrides(args)
        )
    told["binary_share"] = student.binarize_plan.binary_share  # type: ignore[union-attr]
    if args.recalibrate:
        with out.step(f"measuring the norms on {args.recalibrate} batches"):
            recalibrate(student, _some(loader, args.recalibrate))
    return student, recipe, told


def overrides(args: argparse.Namespace) -> dict[str, str] | None:
    """The overrides of ``--keep`` and ``--binarize``."""
    given = dict.fromkeys(args.keep, "keep")
    return {**given, **dict.fromkeys(args.binarize, "binarize")} or None


def _some(loader: Any, batches: int) -> Any:
    return itertools.islice(iter(loader), max(1, batches))


def _teacher(
    args: argparse.Namespace, recipe: Recipe | None, classes: int, out: Output
) -> nn.Module | None:
    if args.teacher is None:
        return None
    from binarize.cli.sources import known_about, open_source

    fallback = recipe
    if args.teacher_model is not None:
        fallback = recipe_from(args, args.teacher_model, classes)
    elif known_about(Path(args.teacher).expanduser()).get("recipe"):
        fallback = None
    with out.step("loading the teacher"):
        return open_source(args.teacher, fallback, argument="teacher").network


def _record(
    args: argparse.Namespace,
    task: str,
    data: DenseDataset,
    recipe: Recipe | None,
    told: Mapping[str, Any],
    trainer: Trainer,
    results: Mapping[str, Any],
) -> dict[str, Any]:
    import torch

    binary = args.policy != "none" or _is_binary(trainer.student)
    settings = {
        "task": task,
        "data": args.data,
        "size": list(data.size) if data.size else None,
        "normalize": args.normalize or "imagenet",
        "max_depth": data.max_depth if task == "depth" else None,
        "classes": list(data.classes) if task == "segmentation" else [],
        "palette": [list(color) for color in data.palette] if task == "segmentation" else [],
    }
    return {
        "command": ["binarize", *sys.argv[1:]],
        "description": {
            "recipe": None if recipe is None else recipe.to_dict(),
            "settings": settings,
        },
        "options": {
            key: value
            for key, value in vars(args).items()
            if key not in ("run", "parser", "json", "quiet", "debug", "version")
        },
        "versions": {"torch": torch.__version__},
        "files": {"model": "binary.safetensors" if binary else "float.safetensors"},
        **told,
        "history": trainer.history,
        "best": trainer.best,
        **results,
    }


def _is_binary(network: nn.Module) -> bool:
    from binarize.nn import BinaryLayer

    return any(isinstance(module, BinaryLayer) for module in network.modules())


def _save(folder: Path, network: nn.Module, record: dict[str, Any], out: Output) -> None:
    from binarize.cli.weights import save_float

    path = folder / record["files"]["model"]
    write_json(folder / "metrics.json", record)  # the numbers are safe whatever happens next
    with out.step(f"saving {path}"):
        if path.name == "binary.safetensors":
            from binarize.file import save

            save(network.cpu(), path)
        else:
            save_float(network, path, record["description"])
        record["bytes"] = path.stat().st_size
        write_json(folder / "metrics.json", record)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = json.dumps(jsonable(record), indent=1, ensure_ascii=False, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _show(record: Mapping[str, Any], folder: Path, out: Output) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    splits = [name for name in ("val", "test") if name in record]
    table.add_column("metric")
    for name in splits:
        table.add_column(name, justify="right")
    for metric, value in record[splits[-1]].items() if splits else ():
        if isinstance(value, float):
            table.add_row(metric, *(f"{record[name][metric]:.4f}" for name in splits))
    if splits:
        out.print(table)
    out.print(
        f"network  {folder / record['files']['model']} ({record['bytes']:,} bytes)", wrap=False
    )
    out.print(f"numbers  {folder / 'metrics.json'}", wrap=False)
