"""``binarize train``: train a float network, or convert it and train the 1-bit one."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from binarize.cli.app import is_interruption
from binarize.cli.datasets import (
    add_data_options,
    has_split,
    make_loader,
    open_data,
    open_unlabelled,
    task_of,
)
from binarize.cli.networks import FORMS, add_network_options
from binarize.cli.output import Output
from binarize.cli.parser import Subparsers, add_command
from binarize.cli.train_options import (
    add_augment_options,
    add_start_options,
    add_training_options,
)
from binarize.errors import BinarizeError, FileError

__all__ = ["add", "run"]

_DESCRIPTION = """\
Train a network on images with masks or depth. With --policy none the network stays float; with
a policy it is first converted, from its initial weights (--encoder-weights, --init), its
norm statistics are re-estimated, and it is trained, with a --teacher if one is given.

Writes into --output: last.pt and best.pt (for --resume), history.json and curves.png (while it
trains; binarize view shows them), metrics.json (history, final metrics, command line), and
float.safetensors or binary.safetensors (one bit per binary weight)."""

_EXAMPLES = [
    (
        "binarize train --data scenes --model smp:Unet:resnet18 --policy none \\\n"
        "      --epochs 5 --output runs/float",
        "a float network on synthetic scenes",
    ),
    (
        "binarize train --data camvid --root data/camvid --size 192x144 \\\n"
        "      --model smp:Unet:resnet18 --encoder-weights resnet18.safetensors \\\n"
        "      --epochs 25 --output runs/binary",
        "a 1-bit network on CamVid with a pretrained encoder",
    ),
    (
        "binarize train --data camvid --root data/camvid --size 192x144 \\\n"
        "      --model smp:Unet:resnet18 --init runs/float/float.safetensors \\\n"
        "      --teacher runs/float/float.safetensors --distill trust=agree \\\n"
        "      --distill temperature=2 --output runs/distilled",
        "a 1-bit network initialised and distilled from a trained float one",
    ),
    (
        "binarize train --data folder --root photos --size 192x144 --classes 11 \\\n"
        "      --model smp:Unet:resnet18 --init runs/float/float.safetensors \\\n"
        "      --teacher runs/float/float.safetensors --output runs/photos",
        "a 1-bit network distilled from the float one on unlabelled photos",
    ),
    (
        "binarize train --data camvid --root data/camvid --model smp:Unet:resnet18 \\\n"
        "      --output runs/binary --resume",
        "continue after an interruption: the same command and --resume",
    ),
    (
        "binarize train --data nyuv2 --task segmentation --root data/nyuv2 \\\n"
        "      --model runs/depth/binary.safetensors --add-task labels --task-flips 1% \\\n"
        "      --output runs/labels",
        "a second task that shares the bits of a 1-bit depth network",
    ),
    (
        "accelerate launch --num_processes 4 -m binarize train --data nyuv2 ...",
        "in several processes",
    ),
]


def add(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = add_command(
        commands,
        "train",
        run,
        help="train a float network, or convert one and train it",
        usage="--model MODEL --data NAME --output DIR",
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
        help="how to binarize it (default bidense); none trains the float network",
    )
    add_network_options(parser)
    add_start_options(parser)
    add_data_options(parser, original=True)
    add_augment_options(parser)
    add_training_options(parser)


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Train, measure, save."""
    _check(args)
    import torch

    from binarize.cli.distill import distillation_losses
    from binarize.cli.records import make_folder, make_record, save_network, show_metrics
    from binarize.cli.sources import split_task
    from binarize.cli.start import make_student, make_teachers
    from binarize.data import PartlyLabelled, UnlabelledFolder
    from binarize.train import EarlyStopping, Trainer, open_task
    from binarize.train.checkpoint import checkpoint_path
    from binarize.train.recipes import DEFAULT, load_recipe

    main = os.environ.get("RANK", "0") == "0"
    if not main:  # other processes of `accelerate launch` print nothing
        out = Output(quiet=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    task = task_of(args, {})
    open_task(task, num_classes=2)  # rejects an unknown task
    way = load_recipe(args.recipe or DEFAULT)
    if args.batch_size is None:
        args.batch_size = way.training["batch_size"]
    distillation, features = distillation_losses(task, args.distill, way.distillation)
    augment = _augment(args)
    make_folder(args.output)
    resumed = checkpoint_path(args.resume, args.output)
    if resumed is not None:
        out.note(f"resuming from {resumed}")

    train = open_data(args, "train", out, augment=augment)
    free = isinstance(train, UnlabelledFolder)
    if not free:
        train.check_targets()
    samples: Any = train
    if args.unlabelled is not None:
        samples = PartlyLabelled(
            train, open_unlabelled(args, train, out, augment=train.augment or False)
        )
    held = {
        split: make_loader(open_data(args, split, out), args.batch_size)
        for split in ("val", "test")
        if has_split(args, split)
    }
    if not held:
        if args.pictures:
            raise BinarizeError(
                "pictures",
                args.pictures,
                "needs validation images, and the data set has no val/ or test/",
                "omit --pictures",
            )
        out.note("note: without val/ or test/ in the data set, there is no validation")
    loader = make_loader(samples, args.batch_size, train=True, workers=args.workers)

    torch.manual_seed(args.seed)
    classes = args.classes
    if classes is None:
        classes = {"depth": 1, "edges": 1, "normals": 3}.get(task, train.num_classes)
        if not classes:
            raise BinarizeError("classes", None, "is unknown without labels", "give --classes N")
    student, recipe, facts = make_student(args, classes, loader, out, resumed=resumed is not None)
    trainer = Trainer(
        student,
        teacher=make_teachers(args, recipe, classes, out, task),
        task=task,
        recipe=way,
        epochs=args.epochs,
        lr=args.lr,
        weight_decay=args.weight_decay,
        warmup=args.warmup,
        clip=args.clip,
        accumulate=args.accumulate,
        sam=args.sam,
        ema=args.ema,
        lr_factors=dict(args.lr_factor) or None,
        two_steps=args.two_steps,
        progressive=args.progressive,
        optimizer=None if args.bop is None else _bop(dict(args.bop)),
        flips=args.flips,
        callbacks=[] if args.patience is None else [EarlyStopping(args.patience)],
        distillation=distillation,
        features=features,
        agreement=_agreement(args),
        bf16=args.bf16,
        compile=args.compile,
        output_dir=args.output,
        save_every=args.save_every,
        keep_checkpoints=args.keep_checkpoints,
        resume=resumed,
        overwrite=True,  # the folder was checked at the start
        settings=_settings(args, classes),
        seed=args.seed,
        balance=args.balance,
        val_every=args.val_every,
        pictures=args.pictures,
        select=args.select,
        progress=not out.quiet,
    )
    started = time.perf_counter()
    try:
        trainer.fit(loader, held.get("val", held.get("test")))
    except BaseException as error:
        if is_interruption(error):
            out.note(_how_to_go_on(args, trainer))
        raise
    facts["seconds"] = round(time.perf_counter() - started, 1)
    results = {split: trainer.evaluate(batches) for split, batches in held.items()}
    if not main:
        return None
    for name in ("epochs", "lr", "weight_decay", "warmup", "balance"):
        setattr(args, name, getattr(trainer, name))  # the values in use
    record = {**make_record(args, task, train, recipe, trainer, results), **facts}
    base = None
    if args.add_task is not None:
        base = split_task(args.model)[0]
        record["files"]["model"] += f"#{args.add_task}"
    save_network(args.output, student, record, out, base)
    show_metrics(results, out, train.classes if "mask" in train.keys else ())
    network = args.output / record["files"]["model"]
    out.print(f"network  {network} ({record['bytes']:,} bytes)", wrap=False)
    out.print(f"numbers  {args.output / 'metrics.json'}", wrap=False)
    out.emit(record)
    return None


def _bop(given: dict[str, Any]) -> Any:
    from binarize.train import Bop

    for name in given:
        if name not in ("rate", "threshold"):
            raise BinarizeError("bop", name, "unknown name", "use rate, threshold")
    return Bop(**given)


def _check(args: argparse.Namespace) -> None:
    """Reject errors that show without data and network, before anything slow happens."""
    _check_folder(args)
    for name in (
        "epochs",
        "batch_size",
        "lr",
        "val_every",
        "threads",
        "clip",
        "accumulate",
        "patience",
        "keep_checkpoints",
    ):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise BinarizeError(
                name.replace("_", "-"), value, "must be positive", "choose a larger value"
            )
    for name in ("recalibrate", "seed", "weight_decay", "pictures"):
        value = getattr(args, name)
        if value is not None and not value >= 0:
            raise BinarizeError(
                name.replace("_", "-"), value, "must not be negative", "use 0 or more"
            )
    if args.warmup is not None and not 0 <= args.warmup <= 1:
        raise BinarizeError("warmup", args.warmup, "must be from 0 to 1", "use e.g. 0.3")
    if args.distill and args.teacher is None:
        raise BinarizeError("distill", args.distill, "needs a teacher", "give --teacher FILE")
    if args.unlabelled is not None and args.teacher is None:
        raise BinarizeError(
            "unlabelled", str(args.unlabelled), "needs a teacher", "give --teacher FILE"
        )
    for name, value in (("task-flips", args.task_flips), ("task-agree", args.task_agree)):
        if value is not None and args.add_task is None:
            raise BinarizeError(name, value, "needs a further task", "give --add-task NAME too")
    if args.task_agree is not None and not args.task_agree > 0:
        raise BinarizeError("task-agree", args.task_agree, "must be positive", "leave it out")
    if args.add_task is not None:
        from binarize.cli.sources import is_file
        from binarize.file.tasks import check_task_name

        check_task_name(args.add_task, "add-task")
        if not is_file(args.model):
            raise BinarizeError(
                "add-task",
                args.add_task,
                "needs a converted network whose bits it shares",
                "give its file: --model FILE",
            )
    if args.balance is not None and task_of(args, {}) != "segmentation":
        raise BinarizeError(
            "balance", args.balance, "needs classes", "use it with --task segmentation"
        )
    if args.policy != "none":
        from binarize.policy import load_policy

        load_policy(args.policy)
        if args.budget is not None:
            from binarize.budget import Budget

            Budget.parse(args.budget)
        else:
            for name in ("sensitivity", "profile"):
                if getattr(args, name) is not None:
                    raise BinarizeError(
                        name, str(getattr(args, name)), "needs a budget", "give --budget too"
                    )
    elif args.budget is not None:
        raise BinarizeError("policy", "none", "--budget needs a policy", "omit one of them")
    elif args.keep or args.int8 or args.binarize:
        raise BinarizeError(
            "policy",
            "none",
            "--keep-float, --int8 and --binarize need a policy",
            "omit one of them",
        )


def _check_folder(args: argparse.Namespace) -> None:
    """Reject a folder that holds a run, unless this one resumes or overwrites it."""
    if args.resume is not None and args.overwrite:
        raise BinarizeError(
            "overwrite", True, "cannot be combined with --resume", "omit one of them"
        )
    if args.resume is not None or args.overwrite:
        return
    names = ("last.pt", "metrics.json", "float.safetensors", "binary.safetensors")
    found = next((name for name in names if (args.output / name).exists()), None)
    if found is not None and os.environ.get("RANK", "0") == "0":
        raise FileError(
            "output",
            str(args.output),
            f"already holds a run ({found})",
            "give --resume to continue it, --overwrite to start over, or another folder",
        )


def _agreement(args: argparse.Namespace) -> Any:
    """Return the penalty on differences from the base; None if there is none."""
    if args.task_agree is None:
        return None
    from binarize.cli.sources import open_source
    from binarize.train import Agreement

    return Agreement(open_source(args.model).network, args.task_agree)


def _settings(args: argparse.Namespace, classes: int) -> dict[str, Any]:
    """Return settings that a resumed run must share, in addition to the Trainer's."""
    root = None if args.root is None else str(Path(args.root).expanduser().resolve())
    return {
        "model": args.model,
        "model_arguments": [list(pair) for pair in args.model_arg],
        "policy": args.policy,
        "keep_float": list(args.keep),
        "binarize": list(args.binarize),
        **({"int8": list(args.int8)} if args.int8 else {}),
        **({"add_task": [args.add_task, args.task_flips]} if args.add_task else {}),
        "budget": args.budget,
        "classes": classes,
        "dataset": args.data,
        "root": root,
    }


def _how_to_go_on(args: argparse.Namespace, trainer: Any) -> str:
    checkpoint = args.output / "last.pt"
    if trainer.has_checkpoint and checkpoint.is_file():
        return f"stopped; the same command with --resume continues from {checkpoint}"
    return "stopped before the first checkpoint; there is nothing to resume"


def _augment(args: argparse.Namespace) -> Any:
    from binarize.data import Augment

    names = [field.name for field in fields(Augment)]
    augment = Augment(**{name: getattr(args, name) for name in names})
    if args.augment is not None:
        for name in names:
            if getattr(args, name) != getattr(Augment(), name):
                rule = "is a whole augmentation"
                raise BinarizeError("augment", args.augment, rule, f"omit it, or --{name}")
        return args.augment
    return augment if augment != Augment(flip=0) else False
