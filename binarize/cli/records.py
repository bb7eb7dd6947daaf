"""The output of a training run: the network's file and ``metrics.json``."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize import writing
from binarize.cli.output import Output
from binarize.errors import FileError

if TYPE_CHECKING:
    from torch import nn

    from binarize.cli.networks import Recipe
    from binarize.data import DenseDataset
    from binarize.train import Trainer

__all__ = [
    "make_folder",
    "make_record",
    "output_folder",
    "save_network",
    "show_metrics",
    "write_json",
]

_NOT_OPTIONS = ("run", "parser", "json", "quiet", "debug", "version")


def make_folder(folder: Path) -> None:
    """Create the output folder, or fail at once if it cannot be written to.

    Raises:
        FileError: It cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            "output",
            str(folder),
            f"cannot be created ({error.strerror})",
            "choose a writable folder",
        ) from error
    if not os.access(folder, os.W_OK):
        raise FileError("output", str(folder), "cannot be written to", "choose another folder")


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Create the output folder; new folders that stay empty are removed.

    Raises:
        FileError: It cannot be created or written to.
    """
    made = []
    for path in (folder, *folder.parents):
        if path.exists():
            break
        made.append(path)
    try:
        make_folder(folder)
        yield
    finally:
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()


def make_record(
    args: argparse.Namespace,
    task: str,
    data: DenseDataset,
    recipe: Recipe | None,
    trainer: Trainer,
    results: Mapping[str, Any],
) -> dict[str, Any]:
    """Build the content of ``metrics.json``; its ``description`` suffices to use the network."""
    import torch

    from binarize.nn.treated import TreatedLayer

    is_binary = any(isinstance(module, TreatedLayer) for module in trainer.student.modules())
    segmentation = "mask" in data.keys or task in ("segmentation", "multilabel")
    settings = {
        "task": task,
        "data": args.data,
        "size": list(data.size) if data.size else None,
        "fit": data.fit,
        "normalize": data.normalize if data.bands else args.normalize or "imagenet",
        "bands": data.bands,
        "max_depth": data.max_depth if "depth" in task.split("+") else None,
        "classes": list(data.classes) if segmentation else [],
        "palette": [list(color) for color in data.palette] if segmentation else [],
        "mask_values": getattr(data, "mask_values", None),
    }
    return {
        "command": ["binarize", *sys.argv[1:]],
        "description": {
            "recipe": None if recipe is None else recipe.to_dict(),
            "settings": settings,
        },
        "options": {key: value for key, value in vars(args).items() if key not in _NOT_OPTIONS},
        "torch": torch.__version__,
        "files": {"model": "binary.safetensors" if is_binary else "float.safetensors"},
        "history": trainer.history,
        "best": trainer.best,
        **results,
    }


def save_network(
    folder: Path,
    network: nn.Module,
    record: dict[str, Any],
    out: Output,
    base: Path | None = None,
) -> None:
    """Write the network and ``metrics.json``; adds the file's ``bytes`` to the record.

    Args:
        folder: Where to.
        network: The network.
        record: What ``metrics.json`` holds.
        out: The output, for progress.
        base: For a task that shares bits: its base's file, of which a copy is written.

    Raises:
        FileError: A file cannot be written.
    """
    from binarize.cli.sources import split_task
    from binarize.cli.weights import save_float
    from binarize.file import save

    path, task = split_task(folder / record["files"]["model"])
    write_json(folder / "metrics.json", record)  # first, so that the numbers are safe
    with out.step(f"saving {path}"):
        if base is not None:
            with writing.atomic_write(path) as temporary:
                shutil.copyfile(base, temporary)
                save(network.cpu(), temporary, description=record["description"], task=task)
        elif path.name == "binary.safetensors":
            save(network.cpu(), path, description=record["description"])
        else:
            save_float(network, path, record["description"])
    record["bytes"] = path.stat().st_size
    write_json(folder / "metrics.json", record)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    try:
        writing.write_json(path, record)
    except OSError as error:
        raise FileError(
            "output",
            str(path),
            f"cannot be written ({error.strerror or error})",
            "free some space or choose another folder",
        ) from error


def show_metrics(
    results: Mapping[str, Mapping[str, Any]], out: Output, classes: Sequence[str] = ()
) -> None:
    """Print a table of metrics, one column per split, followed by the IoU of each class."""
    from rich.table import Table
    from rich.text import Text

    if not results:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("metric")
    for name in results:
        table.add_column(name, justify="right")
    for metric, value in next(iter(results.values())).items():
        if isinstance(value, float):
            table.add_row(metric, *(f"{values[metric]:.4f}" for values in results.values()))
    single = next(iter(results.values())).get("IoU")
    if isinstance(single, Sequence):
        # With one class, the background is measured too.
        names = classes if len(classes) == len(single) else ("background", *classes)
        for number, name in enumerate(names[: len(single)]):
            shown = (values["IoU"][number] for values in results.values())
            table.add_row(
                Text(f"IoU {name}"), *("–" if math.isnan(v) else f"{v:.4f}" for v in shown)
            )
    out.print(table)
