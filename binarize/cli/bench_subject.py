"""The subject of ``binarize bench``: a network's forms, its inputs, and a process per form."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from binarize.bench import VERSIONS, Subject, Version
from binarize.cli.deployed import deployed_kind
from binarize.cli.examples import example_for, example_image, shell_remedies
from binarize.cli.networks import Recipe, build, recipe_from
from binarize.cli.sources import is_file, known_about, open_source, split_task
from binarize.cli.weights import read_header
from binarize.errors import BinarizeError
from binarize.file import load, save
from binarize.file.stored import read_stored
from binarize.graph.convert import convert
from binarize.graph.heads import resize_heads
from binarize.graph.inputs import arguments, input_shapes, run_example
from binarize.graph.origin import build_origin
from binarize.lower import pack
from binarize.nn.int8 import assume_ranges

__all__ = ["Inputs", "memory_in_a_process", "open_inputs", "open_subject", "saved"]

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a network."""

# No memory is reported for a version that takes longer than this to start and run twice.
_PATIENCE = 1800


def open_subject(args: argparse.Namespace) -> tuple[Subject, dict[str, Version]]:
    """Return the forms of the command line's network, none created yet, and its versions."""
    recipe = _recipe(args)
    if is_file(args.model):
        kind = deployed_kind(Path(args.model).expanduser())
        if kind is not None:
            return _of_deployed(args.model, kind)
    if _is_binary_file(args.model):
        return _of_binary_file(args.model, recipe), dict(VERSIONS)

    def student() -> nn.Module:
        with shell_remedies(args.model):
            example = example_for(subject.network, recipe, args.size)
            made = convert(subject.network, args.policy, example_inputs=example).eval()
        assume_ranges(made)
        return made

    subject = Subject(
        lambda: open_source(args.model, recipe).network, student, lambda: pack(subject.student)
    )
    return subject, dict(VERSIONS)


def _recipe(args: argparse.Namespace) -> Recipe | None:
    if args.network is not None:
        return recipe_from(args, args.network)
    if not is_file(args.model):
        return recipe_from(args, args.model)
    recipe = known_about(args.model, "model").get("recipe")
    return Recipe(**recipe) if recipe else None


def _of_deployed(reference: str, kind: str) -> tuple[Subject, dict[str, Version]]:
    """Return the one form of a deployed file."""
    network: Any = open_source(reference, deployed=True).network
    size = Path(reference).expanduser().stat().st_size
    name, summary = {
        "programs": ("packed", "1-bit, packed programs"),
        "onnx": ("onnx", "ONNX Runtime"),
    }[kind]
    version = Version(summary, lambda subject: subject.packed, lambda subject: size)
    return Subject(lambda: network, lambda: network, lambda: network), {name: version}


def _is_binary_file(reference: str) -> bool:
    header = read_header(split_task(reference)[0], "model") if is_file(reference) else {}
    return header.get("format") == "binarize"


def _of_binary_file(reference: str, recipe: Recipe | None) -> Subject:
    path, task = split_task(reference)

    def network() -> nn.Module:
        plan = read_stored(path, task).plan
        if recipe is not None:
            made = build(recipe)
        elif plan.origin is not None:
            made = build_origin(plan.origin)
        else:
            return open_source(reference).network  # raises if it is unknown how to build it
        resize_heads(made, plan.heads)
        return made

    def packed() -> nn.Module:
        knows = read_stored(path).plan.origin is not None
        return load(path, None if knows else network(), packed=True, task=task)

    return Subject(network, lambda: open_source(reference, recipe).network, packed)


def open_inputs(args: argparse.Namespace, subject: Subject) -> Inputs:
    """Return the inputs: from the options, the user's file, training, conversion, or a search.

    Raises:
        BinarizeError: The network's inputs are unknown, or unknown for this batch size.
    """
    path = Path(args.model).expanduser()
    known = known_about(args.model, "model").get("settings", {}) if is_file(args.model) else {}
    kind = deployed_kind(path) if is_file(args.model) else None
    size = args.size or (tuple(known["size"]) if known.get("size") else None)
    if kind is not None:
        network: Any = subject.packed
        shapes = network.example_shapes
        if args.size is not None and not network.fixed:
            shapes = ((1, shapes[0][1], *args.size),)
        inputs: Inputs = (tuple(map(torch.zeros, shapes)), {})
    else:
        inputs = arguments(_example(args, subject, size))
    torch.manual_seed(0)
    # Speed may depend on values: zeros and denormal numbers are not realistic.
    return tree_map_only(Tensor, lambda x: _sample(x, args.batch_size), inputs)


def _example(args: argparse.Namespace, subject: Subject, size: tuple[int, ...] | None) -> Any:
    with shell_remedies(args.model):
        recipe = _recipe(args)
        if args.size is None and recipe is None and size is not None:
            return example_image(subject.network, size)
        given = example_for(subject.network, recipe, size)
        if given is not None:
            return given
        shapes: tuple[tuple[int, ...], ...] = ()
        if _is_binary_file(args.model):
            shapes = read_stored(args.model).plan.example
        shapes = shapes or input_shapes(run_example(subject.network))
    if not shapes:
        raise BinarizeError("model", args.model, "does not specify its inputs", "give --size WxH")
    return tuple(torch.zeros(shape) for shape in shapes)


def _sample(value: Tensor, count: int) -> Tensor:
    repeated = value[:1].expand(count, *value.shape[1:]) if value.dim() else value
    if not repeated.is_floating_point():
        return repeated.contiguous()
    image = torch.rand(repeated.shape, dtype=repeated.dtype)
    return image.contiguous(memory_format=torch.channels_last) if image.dim() == 4 else image


def saved(args: argparse.Namespace, subject: Subject, folder: Path) -> str:
    """Return a file of the 1-bit network: the given one, or a new one in ``folder``."""
    if is_file(args.model) and (
        _is_binary_file(args.model) or deployed_kind(Path(args.model).expanduser())
    ):
        return str(args.model)
    path = folder / "binary.safetensors"
    save(subject.student, path)
    return str(path)


def memory_in_a_process(
    args: argparse.Namespace, reference: str, version: str
) -> tuple[int | None, int | None]:
    """Measure the peak memory of a process that only loads a version and runs it twice.

    Args:
        args: Parsed options of ``binarize bench``.
        reference: The network, by specification or as a file.
        version: Name of the version.

    Returns:
        Total bytes, and bytes before loading the network; ``None`` if unknown.
    """
    words = ["bench", reference, "--policy", args.policy, "--in-channels", str(args.in_channels)]
    words += ["--memory-of", version, "--batch-size", str(args.batch_size), "--json", "--quiet"]
    network = args.network
    if network is None and reference != args.model and not is_file(args.model):
        network = args.model
    size = None if args.size is None else "x".join(str(n) for n in reversed(args.size))
    for option, value in (
        ("--model", network),
        ("--size", size),
        ("--classes", args.classes),
        ("--threads", args.threads),
    ):
        words += [] if value is None else [option, str(value)]
    for key, value in args.model_arg:
        words += ["--model-arg", f"{key}={value!r}"]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "binarize", *words],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
        measured = json.loads(done.stdout)
        return measured["peak_bytes"], measured["idle_bytes"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None, None
