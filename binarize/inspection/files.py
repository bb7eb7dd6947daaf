"""Write an inspection to files (JSON, tables, figures), and read it again."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from binarize.errors import FileError
from binarize.inspection.figures import entropy_figure, map_figure, parameter_figure
from binarize.inspection.numbers import FeatureMap, Inspection, LayerInspection
from binarize.writing import atomic_write_dir

__all__ = ["NAMES", "read", "write"]

NAMES = (
    "inspection.json",
    "channels.csv",
    "parameters.csv",
    "feature_maps.csv",
    "entropy.png",
    "parameters.png",
    "feature_maps.png",
)


def write(
    inspection: Inspection, folder: Path, pictures: Sequence[tuple[str, Tensor]] = ()
) -> tuple[Path, ...]:
    """Write an inspection, see :meth:`Inspection.save`.

    Empty figures (no learned parameters, no feature maps) are omitted.

    Args:
        inspection: The numbers.
        folder: The output folder.
        pictures: Name and image (uint8, (3, H, W)) of the first batches.

    Returns:
        The files.

    Raises:
        FileError: The folder cannot be written.
    """
    try:
        with atomic_write_dir(folder, NAMES) as temporary:
            _write_numbers(inspection, temporary, [name for name, _ in pictures])
            figures: dict[str, Any] = {
                "entropy.png": entropy_figure(inspection),
                "parameters.png": parameter_figure(inspection),
                "feature_maps.png": map_figure(inspection, pictures),
            }
            for name, figure in figures.items():
                if figure is not None:
                    figure.savefig(temporary / name, dpi=130)
            written = [name for name in NAMES if (temporary / name).exists()]
    except OSError as error:
        raise FileError(
            "folder",
            str(folder),
            f"cannot be written ({error.strerror or error})",
            "choose a writable folder",
        ) from error
    return tuple(folder / name for name in written)


def read(path: Path) -> Inspection:
    """Read an inspection, see :meth:`Inspection.load`.

    Args:
        path: The folder, or its ``inspection.json``.

    Raises:
        FileError: There is no inspection, or it is damaged.
    """
    file = path / "inspection.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        return Inspection(
            network=data["network"],
            policy=data["policy"],
            batches=data["batches"],
            layers=tuple(_layer(row) for row in data["layers"]),
            maps_of=data["maps_of"],
            maps=tuple(_read_maps(data["maps"], file.with_name("feature_maps.csv"))),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise FileError(
            "inspection",
            str(path),
            f"is not a readable inspection ({type(error).__name__}: {error})",
            "give the folder that binarize inspect wrote",
        ) from error


def _layer(row: Any) -> LayerInspection:
    known = {name: row[name] for name in ("name", "kind", "binarizer", "bits", "calls")}
    for name in ("share", "entropy", "pooled_entropy", "map_entropy"):
        known[name] = tuple(map(float, row[name]))
    known["parameters"] = {
        name: tuple(math.nan if value is None else float(value) for value in values)
        for name, values in row["parameters"].items()
    }
    return LayerInspection(**known)


def _read_maps(rows: Sequence[Any], path: Path) -> Iterator[FeatureMap]:
    """Return the feature maps, whose values are in a table of their own."""
    with open(path, newline="", encoding="utf-8") as file:
        values = [(float(row["before"]), float(row["after"])) for row in csv.DictReader(file)]
    start = 0
    for row in rows:
        end = start + math.prod(row["shape"])
        both = torch.tensor(values[start:end]).reshape(*row["shape"], 2)
        yield FeatureMap(row["batch"], row["sample"], row["entropy"], both[..., 0], both[..., 1])
        start = end


def _write_numbers(inspection: Inspection, folder: Path, names: Sequence[str]) -> None:
    record = {**inspection.to_dict(), "pictures": list(names)}
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    (folder / "inspection.json").write_text(text + "\n", encoding="utf-8")
    heads = {
        "channels.csv": ("layer", "channel", "share", "entropy", "pooled_entropy"),
        "parameters.csv": ("layer", "parameter", "index", "value"),
        "feature_maps.csv": ("batch", "sample", "position", "before", "after"),
    }
    rows = {
        "channels.csv": _channels(inspection),
        "parameters.csv": _parameters(inspection),
        "feature_maps.csv": _maps(inspection),
    }
    for name, head in heads.items():
        _write_table(folder / name, head, rows[name])


def _write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(head)
        table.writerows(rows)


def _channels(inspection: Inspection) -> Iterator[Sequence[Any]]:
    for layer in inspection.layers:
        columns = zip(layer.share, layer.entropy, layer.pooled_entropy, strict=True)
        for channel, values in enumerate(columns):
            yield layer.name, channel, *values


def _parameters(inspection: Inspection) -> Iterator[Sequence[Any]]:
    for layer in inspection.layers:
        for name, values in layer.parameters.items():
            for index, value in enumerate(values):
                yield layer.name, name, index, value


def _maps(inspection: Inspection) -> Iterator[Sequence[Any]]:
    """Yield a row for each position; "row:column" for two dimensions."""
    for kept in inspection.maps:
        for position in itertools.product(*map(range, kept.before.shape)):
            before, after = float(kept.before[position]), float(kept.after[position])
            yield kept.batch, kept.sample, ":".join(map(str, position)), before, after
