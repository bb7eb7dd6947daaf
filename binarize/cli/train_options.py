"""The options of ``binarize train``."""

from __future__ import annotations

import argparse
from pathlib import Path

from binarize.cli.parser import pair, share
from binarize.cli.policy_options import add_budget_options, add_override_options

__all__ = ["add_augment_options", "add_start_options", "add_training_options"]


def add_start_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for initial weights, conversion and teacher."""
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
        "--partial", action="store_true", help="accept --init that fits only part of the network"
    )
    start.add_argument(
        "--encoder-weights", type=Path, metavar="FILE", help="backbone weights for its encoder"
    )
    start.add_argument(
        "--keep-folded",
        action="store_true",
        help="keep norms that were folded into the loaded weights, instead of unfolding them for "
        "training",
    )
    start.add_argument(
        "--add-task",
        metavar="NAME",
        help="train a further task that shares the bits of --model FILE, and write it into a copy "
        "of that file under this name",
    )
    start.add_argument(
        "--task-flips",
        type=share,
        metavar="SHARE",
        help="largest share of the binary weights that the further task may flip (default 1%%)",
    )
    start.add_argument(
        "--task-agree",
        type=float,
        metavar="WEIGHT",
        help="weight of a penalty on binarized inputs in which the further task differs from its "
        "base, once its flips are fixed (default: none)",
    )
    add_override_options(start)
    add_budget_options(start)
    start.add_argument(
        "--teacher",
        action="append",
        metavar="FILE|TASK=FILE",
        help="weights of the teacher; several teach their mean. For several tasks, TASK=FILE gives "
        "a teacher of one of them",
    )
    start.add_argument(
        "--teacher-model", metavar="MODEL", help="the teacher's network (default: --model)"
    )
    start.add_argument(
        "--distill",
        type=pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="distillation setting: weight, temperature, channel_weight, channel_temperature, "
        "trust (agree, mix, all), truth_share, schedule (cosine, linear, constant); for depth: "
        "weight, gradient_weight, tolerance, scales, schedule; for several tasks: KEY for all of "
        "them, TASK.KEY for one; for any task: features and "
        "attention (weights of the feature-map losses), layers (NAME,NAME; default: where the "
        "resolution changes), "
        "feature_schedule",
    )
    start.add_argument(
        "--unlabelled",
        type=Path,
        metavar="DIR",
        help="folder of additional images without labels, supervised only by the teacher",
    )
    start.add_argument(
        "--recalibrate",
        type=int,
        default=8,
        metavar="N",
        help="batches to re-estimate the norms on before training (default 8, 0 for none)",
    )


def add_augment_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the augmentation."""
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--augment",
        choices=("bts",),
        help="in place of the options below: that of BTS for depth, by data set (flip, rotation, "
        "gamma, brightness, colour balance)",
    )
    group.add_argument(
        "--flip", type=float, default=0.5, metavar="P", help="probability of a flip (default 0.5)"
    )
    group.add_argument(
        "--zoom", type=float, default=1.0, metavar="Z", help="largest zoom (default 1, none)"
    )
    group.add_argument(
        "--shrink", type=float, default=1.0, metavar="Z", help="smallest zoom (default 1, none)"
    )
    group.add_argument(
        "--rotate", type=float, default=0.0, metavar="DEG", help="largest rotation (default 0)"
    )
    group.add_argument(
        "--jitter", type=float, default=0.0, metavar="J", help="strength of colour jitter (0 to 1)"
    )
    for name, what in {
        "gamma": "exponent of the image's values",
        "brightness": "brightness of the image",
        "tint": "brightness of single channels",
    }.items():
        text = f"largest deviation of the {what} from 1, in half of the images (default 0)"
        group.add_argument(f"--{name}", type=float, default=0.0, metavar="X", help=text)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the optimisation."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="source of defaults for the options below: epochs, batch size, learning rate, decay, "
        "warm-up, balance, distillation (default cnn-dense; see binarize recipes)",
    )
    group.add_argument("--epochs", type=int, metavar="N", help="passes over the data")
    group.add_argument("--batch-size", type=int, metavar="N", help="images per batch")
    group.add_argument("--lr", type=float, metavar="X", help="peak learning rate")
    group.add_argument("--weight-decay", type=float, metavar="X", help="of float layers")
    group.add_argument("--clip", type=float, metavar="X", help="gradient clipping norm")
    group.add_argument(
        "--warmup", type=float, metavar="SHARE", help="fraction of the steps for warm-up"
    )
    group.add_argument(
        "--balance",
        type=float,
        metavar="POWER",
        help="weight classes by their frequency to the power -POWER (0 to 1; 0: equally)",
    )
    group.add_argument("--bf16", action="store_true", default=None, help="bfloat16 autocast")
    group.add_argument("--compile", action="store_true", help="use torch.compile")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    group.add_argument("--threads", type=int, metavar="N", help="CPU threads of torch")
    group.add_argument(
        "--val-every", type=int, default=1, metavar="N", help="validate every N epochs (default 1)"
    )
    group.add_argument(
        "--pictures",
        type=int,
        default=0,
        metavar="N",
        help="at each validation, write predictions of N images into pictures/ (default 0)",
    )
    group.add_argument(
        "--select",
        "--final",
        dest="select",
        choices=("last", "best"),
        default="last",
        help="epoch whose weights are evaluated and saved (default last)",
    )
    group.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="FILE",
        help="resume from last.pt in --output if there is one, or from FILE",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="start over in an --output that holds a run"
    )
    group.add_argument(
        "--ema", type=float, metavar="DECAY", help="average the weights, with e.g. 0.999"
    )
    group.add_argument(
        "--sam",
        type=float,
        metavar="RHO",
        help="sharpness-aware steps of this radius, such as 0.05; twice the time",
    )
    group.add_argument(
        "--patience", type=int, metavar="N", help="stop after N epochs without improvement"
    )
    group.add_argument(
        "--accumulate",
        type=int,
        metavar="N",
        help="batches per update (default 1, or what accelerate launch was given)",
    )
    group.add_argument(
        "--two-steps",
        type=float,
        metavar="SHARE",
        help="keep the weights of binary layers float for this fraction of training, with binary "
        "activations from the start",
    )
    group.add_argument(
        "--progressive",
        action="store_true",
        help="with --two-steps: binarize the weights of one layer after the other",
    )
    group.add_argument(
        "--bop",
        type=pair,
        nargs="*",
        metavar="KEY=VALUE",
        help="flip signs of binary weights by Bop instead of training latent ones; rate (default "
        "1e-3) and threshold (1e-6)",
    )
    group.add_argument(
        "--lr-factor",
        type=pair,
        action="append",
        default=[],
        metavar="KIND=X",
        help="learning-rate multiplier for latent (weights of binary layers), thresholds (and "
        "scales) or rest",
    )
    group.add_argument(
        "--flips",
        action="store_true",
        help="log the fraction of binary weights that change sign in each epoch",
    )
    group.add_argument(
        "--save-every",
        metavar="TIME|N",
        help="also write last.pt within epochs: after a time (10min, 90s, 1h) or N batches",
    )
    group.add_argument(
        "--keep-checkpoints",
        type=int,
        default=1,
        metavar="N",
        help="keep the states of the newest N epochs (default 1: only last.pt)",
    )
