"""Starting point of a training run: the student, built, loaded and converted, and its teacher."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.networks import recipe_from
from binarize.cli.output import Output
from binarize.cli.policy_options import overrides
from binarize.cli.sources import is_file, known_about, open_source
from binarize.cli.weights import load_encoder, load_weights
from binarize.errors import BinarizeError, ModelError

if TYPE_CHECKING:
    from torch import nn

    from binarize.cli.networks import Recipe

__all__ = ["make_student", "make_teachers", "open_teacher", "try_out"]


def make_student(
    args: argparse.Namespace, classes: int, loader: Any, out: Output, *, resumed: bool = False
) -> tuple[nn.Module, Recipe | None, dict[str, Any]]:
    """Build the network, load its initial weights, convert it.

    Args:
        args: Parsed options of ``binarize train``.
        classes: Number of output channels.
        loader: Training batches, to estimate norm statistics.
        out: The output, for progress.
        resumed: A checkpoint will replace all weights, so nothing is estimated.

    Returns:
        The network, how its float form is built, and facts for the record.

    Raises:
        BinarizeError: A step is not possible.
    """
    facts: dict[str, Any] = {}
    if is_file(args.model):
        source = open_source(args.model)
        for name in ("init", "encoder_weights"):
            if getattr(args, name) is not None:
                raise BinarizeError(
                    name.replace("_", "-"),
                    str(getattr(args, name)),
                    "cannot be combined with a file as --model",
                    "omit one of them",
                )
    else:
        source = open_source(args.model, recipe_from(args, args.model, classes))
    network, recipe = source.network, source.recipe
    example = next(iter(loader))["image"][:1]
    try_out(network, example)
    if args.add_task is not None:
        from binarize.sharing import add_task

        share = 0.01 if args.task_flips is None else args.task_flips
        with out.step(f"sharing the bits of {args.model}"):
            return add_task(network, classes, flips=share), recipe, facts
    if source.binary:
        return network, recipe, facts
    if args.encoder_weights is not None:
        matched = load_encoder(network, args.encoder_weights)
        out.note(f"encoder: {matched}")
        facts["encoder_tensors"] = matched.loaded
    if args.init is not None:
        matched = load_weights(network, args.init, partial=args.partial, argument="init")
        out.note(f"start: {matched}")
    loaded = args.encoder_weights is not None or args.init is not None
    if loaded and not args.keep_folded and not resumed:
        from binarize.train import unfold_norms

        facts["norms_unfolded"] = unfold_norms(network, _some(loader, args.recalibrate))
        if facts["norms_unfolded"]:
            out.note(f"{facts['norms_unfolded']} folded norms were unfolded")
    if args.policy == "none":
        return network, recipe, facts
    batches = 0 if resumed else args.recalibrate
    return _convert(args, network, example, loader, batches, facts, out), recipe, facts


def _convert(
    args: argparse.Namespace,
    network: nn.Module,
    example: Any,
    loader: Any,
    batches: int,
    facts: dict[str, Any],
    out: Output,
) -> nn.Module:
    from binarize.prepare import prepare_student

    doing = f" and re-estimating the norms on {batches} batches" if batches else ""
    with out.step(f"converting with policy {args.policy}{doing}"):
        student: Any = prepare_student(
            network,
            args.policy,
            loader,
            example_inputs=example,
            overrides=overrides(args),
            budget=args.budget,
            sensitivity=args.sensitivity,
            more_bits=args.more_bits,
            profile=args.profile,
            norm_batches=batches,
            unfold=not args.keep_folded,
        )
    facts["binary_share"] = student.binarize_plan.binary_share
    out.note(f"binary: {facts['binary_share']:.1%} of the weights of its layers")
    network_out: nn.Module = student
    return network_out


def try_out(network: nn.Module, example: Any) -> None:
    """Run a network once on an image of the requested size, before anything slow happens.

    Raises:
        ModelError: Its forward does not accept the image.
    """
    import torch

    try:
        with torch.no_grad():
            network(example)
    except Exception as error:
        rows, columns = example.shape[-2:]
        raise ModelError(
            "size",
            f"{columns}x{rows}",
            f"the network does not accept it ({' '.join(str(error).split())[:200]})",
            "choose another --size, or --in-channels 3",
        ) from error


def make_teachers(
    args: argparse.Namespace,
    recipe: Recipe | None,
    classes: int,
    out: Output,
    task: str,
) -> nn.Module | list[nn.Module] | dict[str, list[nn.Module]] | None:
    """Open the teachers, if there are any.

    Args:
        args: Parsed options of ``binarize train``.
        recipe: How the student's float form is built, for files that do not name their network.
        classes: Number of output channels.
        out: The output, for progress.
        task: Several tasks joined by "+" may have a teacher each.

    Returns:
        A network, several, several by task, or None.

    Raises:
        BinarizeError: A file does not fit, or only some of them name a task.
    """
    if args.teacher is None:
        return None
    heads = task.split("+") if "+" in task else []
    pairs = [_teacher_of(one, heads) for one in args.teacher]
    if len({head == "" for head, _ in pairs}) > 1:
        raise BinarizeError(
            "teacher",
            next(file for head, file in pairs if not head),
            "names no task, as others do",
            f"give TASK=FILE for each, or for none of them; tasks are {', '.join(heads)}",
        )
    found: dict[str, list[nn.Module]] = {}
    opened: dict[str, nn.Module] = {}
    for head, file in pairs:
        if file not in opened:
            opened[file] = open_teacher(args, file, recipe, classes, out)
        found.setdefault(head, []).append(opened[file])
    whole = found.get("")
    if whole is None:
        return found
    return whole[0] if len(whole) == 1 else whole


def _teacher_of(text: str, heads: Collection[str]) -> tuple[str, str]:
    """Split ``TASK=FILE`` into both; a file alone has the task ""."""
    head, equals, file = text.partition("=")
    return (head, file) if equals and head in heads else ("", text)


def open_teacher(
    args: argparse.Namespace, file: str, recipe: Recipe | None, classes: int | None, out: Output
) -> nn.Module:
    """Open one teacher; see :func:`make_teachers`."""
    fallback = recipe
    if args.teacher_model is not None:
        fallback = recipe_from(args, args.teacher_model, classes)
    elif is_file(file) and known_about(Path(file).expanduser(), "teacher").get("recipe"):
        fallback = None
    with out.step("loading the teacher"):
        return open_source(file, fallback, argument="teacher", deployed=True).network


def _some(loader: Any, batches: int) -> Iterator[Any]:
    return itertools.islice(iter(loader), max(1, batches))
