"""What ``binarize bench`` measures: the network's forms, and a process for one of them."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from torch import nn

from binarize.bench import Subject
from binarize.cli.networks import Recipe, build, recipe_from
from binarize.cli.sources import is_file, known_about, open_source
from binarize.cli.weights import read_header
from binarize.errors import BinarizeError
from binarize.file import load, save
from binarize.file.stored import read_stored
from binarize.graph.convert import convert
from binarize.graph.inputs import input_shapes, run_example
from binarize.graph.origin import build_origin
from binarize.lower import pack

__all__ = ["image_shape", "memory_in_a_process", "open_subject", "saved"]

# A version that needs longer than this for a start and two runs has no memory told.
_PATIENCE = 1800


def open_subject(args: argparse.Namespace) -> Subject:
    """The forms of the network that a command line is about; none is made yet."""
    recipe = None if args.network is None else recipe_from(args, args.network)
    if _is_binary_file(args.model):
        return _of_binary_file(args.model, Path(args.model).expanduser(), recipe)
    if not is_file(args.model):
        recipe = recipe_from(args, args.model)

    def student() -> nn.Module:
        return convert(subject.network, args.policy).eval()

    subject = Subject(
        lambda: open_source(args.model, recipe).network, student, lambda: pack(subject.student)
    )
    return subject


def _is_binary_file(reference: str) -> bool:
    header = read_header(Path(reference).expanduser(), "model") if is_file(reference) else {}
    return header.get("format") == "binarize"


def _of_binary_file(reference: str, path: Path, recipe: Recipe | None) -> Subject:
    told = known_about(path, "model").get("recipe")
    if recipe is None and told:
        recipe = Recipe(**told)

    def network() -> nn.Module:
        origin = read_stored(path).plan.origin
        if recipe is not None:
            return build(recipe)
        if origin is not None:
            return build_origin(origin)
        return open_source(reference).network  # tells that it is not known how to build it

    def packed() -> nn.Module:
        knows = read_stored(path).plan.origin is not None
        return load(path, None if knows else network(), packed=True)

    return Subject(network, lambda: open_source(reference, recipe).network, packed)


def image_shape(args: argparse.Namespace, subject: Subject) -> tuple[int, ...]:
    """Shape (N, C, H, W) of the images: as asked for, trained for, converted for, or found.

    Raises:
        BinarizeError: The network takes something else than one image.
    """
    path = Path(args.model).expanduser()
    settings = known_about(path, "model").get("settings", {}) if is_file(args.model) else {}
    rows_and_columns = args.size or settings.get("size")
    shapes: Any
    if rows_and_columns:
        convs = (m.in_channels for m in subject.network.modules() if isinstance(m, nn.Conv2d))
        shapes = ((1, next(convs, 3), *rows_and_columns),)
    elif _is_binary_file(args.model):
        shapes = read_stored(path).plan.example
    else:
        shapes = input_shapes(run_example(subject.network))
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise BinarizeError(
            "model", args.model, "does not take one image of known size", "give --size WxH"
        )
    return (args.batch_size, *shapes[0][1:])


def saved(args: argparse.Namespace, subject: Subject, folder: Path) -> str:
    """A file of the 1-bit network: the one that was given, or a new one in ``folder``."""
    if _is_binary_file(args.model):
        return str(args.model)
    path = folder / "binary.safetensors"
    save(subject.student, path)
    return str(path)


def memory_in_a_process(
    args: argparse.Namespace, reference: str, version: str, shape: tuple[int, ...]
) -> tuple[int | None, int | None]:
    """Largest memory of a process that does nothing but load a version and run it twice.

    Args:
        args: Parsed options of ``binarize bench``.
        reference: The network, by specification or as a file.
        version: Name of the version.
        shape: Shape of the images.

    Returns:
        Bytes in all, and before there was a network; ``None`` if they are not known.
    """
    words = ["bench", reference, "--policy", args.policy, "--in-channels", str(args.in_channels)]
    words += ["--memory-of", f"{version}:{','.join(map(str, shape))}", "--json", "--quiet"]
    network = args.network
    if network is None and reference != args.model and not is_file(args.model):
        network = args.model
    for option, value in (
        ("--model", network),
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
        told = json.loads(done.stdout)
        return told["peak_bytes"], told["idle_bytes"]
    except (subprocess.TimeoutExpired, ValueError, KeyError):
        return None, None
