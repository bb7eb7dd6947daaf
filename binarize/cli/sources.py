"""Open a command's network: by specification, from a weight file, or converted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from binarize.cli.deployed import OnnxNetwork, deployed_kind, described, open_deployed
from binarize.cli.networks import FORMS, Recipe, build
from binarize.cli.weights import KEY, load_weights, read_header
from binarize.errors import FileError, ModelError

__all__ = ["Source", "is_file", "known_about", "open_file", "open_source", "split_task"]

_SUFFIXES = (".safetensors", ".st", ".pt", ".pth", ".ckpt", ".bin", ".onnx")


@dataclass(frozen=True)
class Source:
    """An opened network.

    Attributes:
        network: The network, in evaluation mode.
        recipe: How its float form is built; None if unknown.
        binary: Whether it is a converted network.
        settings: Its training settings, if known: ``task``, ``size``, ``normalize``, ``classes``...
        kind: "programs" or "onnx" for deployed files.
    """

    network: nn.Module
    recipe: Recipe | None
    binary: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str | None = None

    @property
    def size(self) -> tuple[int, ...] | None:
        """Image size: the only accepted one, or that of its training, if known."""
        network: Any = self.network
        if self.kind is not None and network.fixed:
            return tuple(network.example_shapes[0][2:])
        known = self.settings.get("size")
        return tuple(known) if known else None


def is_file(reference: str) -> bool:
    """Return whether a reference is a weight file and not a specification."""
    path, task = split_task(reference)
    return task is not None or reference.endswith(_SUFFIXES) or path.is_file()


def split_task(reference: str | Path) -> tuple[Path, str | None]:
    """Return the file of a reference ``FILE`` or ``FILE#TASK``, and the task.

    Args:
        reference: A file, or with ``#`` a task that shares the bits of the file's base.
    """
    file, mark, task = str(reference).rpartition("#")
    whole = Path(reference).expanduser()
    if mark and not whole.exists() and (file.endswith(_SUFFIXES) or Path(file).is_file()):
        return Path(file).expanduser(), task
    return whole, None


def known_about(reference: str | Path, argument: str = "file") -> dict[str, Any]:
    """Return a training run's description of a file, from it or ``metrics.json`` beside it."""
    path, task = split_task(reference)
    header = read_header(path, argument)
    if task is not None:
        from binarize.file.tasks import task_description

        return described(task_description(path, header, task))
    if KEY in header:
        return described(header[KEY])
    if deployed_kind(path) == "onnx":
        return described(OnnxNetwork(path).description)
    try:
        record = json.loads((path.parent / "metrics.json").read_text(encoding="utf-8"))
        if path.name in record["files"].values():
            return dict(record["description"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def open_source(
    reference: str,
    fallback: Recipe | None = None,
    *,
    argument: str = "model",
    packed: bool = False,
    deployed: bool = False,
) -> Source:
    """Open a network by specification or from a file.

    Args:
        reference: A specification, a file that ``binarize`` wrote (``FILE#TASK`` for a task in
            it), or a file of float weights.
        fallback: How to build the network of a file that does not name it.
        argument: Name of the option, for messages.
        packed: Whether to load a binary network packed, for inference only.
        deployed: Whether packed programs and ONNX files will do, which can only be run.

    Raises:
        ModelError: The specification is invalid or missing, a float network should be packed, or a
            deployed file is given where layers are needed.
        FileError: The file is missing, damaged, or does not fit.
    """
    if not is_file(reference):
        _check_packed(packed, reference)
        named = Recipe(reference) if fallback is None else fallback
        return Source(build(named).eval(), named, False)
    path, task = split_task(reference)
    header = read_header(path, argument)
    kind = deployed_kind(path)
    if kind is not None:
        _check_deployed(deployed, argument, reference, kind)
        runner, told = open_deployed(path, kind)
        size = runner.example_shapes[0][2:]
        if runner.fixed and len(size) == 2:  # a packed network may be of another size
            told = {**told, "settings": {**told.get("settings", {}), "size": list(size)}}
        return Source(runner, None, True, told.get("settings", {}), kind)
    known = known_about(reference, argument)
    recipe = fallback
    if recipe is None and known.get("recipe"):
        recipe = Recipe(**known["recipe"])
        file, colon, _ = recipe.spec.rpartition(":")
        if colon and file.endswith(".py") and not Path(file).expanduser().is_file():
            recipe = None  # built by a user's file that is not available here
    settings = known.get("settings", {})
    if header.get("format") == "binarize":
        network = _load_binary(path, recipe, argument, packed, task)
        return Source(network, recipe, True, settings)
    _check_packed(packed, reference)
    if recipe is None:
        raise ModelError(
            argument,
            reference,
            "the file does not name its network",
            f"name it with --model ({FORMS})",
        )
    network = build(recipe)
    load_weights(network, path, argument=argument)
    return Source(network.eval(), recipe, False, settings)


def _check_packed(packed: bool, reference: str) -> None:
    if packed:
        raise ModelError(
            "packed",
            reference,
            "this is a float network, but only 1-bit networks can be packed",
            "give a file from binarize train or binarize convert",
        )


def _check_deployed(allowed: bool, argument: str, reference: str, kind: str) -> None:
    if not allowed:
        what = {"programs": "a file of packed programs", "onnx": "an ONNX file"}[kind]
        raise ModelError(
            argument,
            reference,
            f"this is {what}, which can be run, but has no layers to look into or to change",
            "give the file that it was made from (binarize train or binarize convert wrote it)",
        )


def open_file(
    file: str,
    fallback: Recipe | None = None,
    *,
    packed: bool = False,
    deployed: bool = False,
) -> Source:
    """Open the network of a weight file like :func:`open_source`, but accept only files.

    Raises:
        ModelError: The file does not name its network.
        FileError: The file is missing, damaged, or does not fit.
    """
    if not is_file(file):
        raise FileError(
            "file",
            file,
            "is not a weight file",
            "give a .safetensors, .pt or .onnx file (binarize train writes one)",
        )
    return open_source(file, fallback, argument="file", packed=packed, deployed=deployed)


def _load_binary(
    path: Path, recipe: Recipe | None, argument: str, packed: bool, task: str | None
) -> nn.Module:
    from binarize.file import load

    try:
        if recipe is None or recipe.spec.startswith(("smp:", "timm:")):
            # The file itself records how to build it.
            return load(path, packed=packed, task=task).eval()
    except FileError as error:
        if "does not say how to build" not in error.rule:
            raise
        if recipe is None:
            raise FileError(
                argument,
                str(path),
                error.rule,
                f"name the network with --model ({FORMS})",
            ) from error
    assert recipe is not None
    return load(path, model=build(recipe), packed=packed, task=task).eval()
