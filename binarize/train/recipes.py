"""Training recipes: named TOML files, one of them the default."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from binarize.errors import BinarizeError, FileError
from binarize.train.distillation.features import FeatureDistillation
from binarize.train.tasks.classification import ClassificationDistillation
from binarize.train.tasks.depth import DepthDistillation
from binarize.train.tasks.edges import EdgesDistillation
from binarize.train.tasks.multitask import MultiTaskDistillation
from binarize.train.tasks.normals import NormalsDistillation
from binarize.train.tasks.segmentation import SegmentationDistillation

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["DEFAULT", "Recipe", "load_recipe", "recipe_files", "validate_recipe"]

DEFAULT = "cnn-dense"

_TEXTS = ("name", "purpose", "source", "command", "result")
_WHOLE = ("epochs", "batch_size")
# Name, and the smallest and largest value; a marked smallest value is itself rejected.
_RANGES: dict[str, tuple[float, float, bool]] = {
    "epochs": (1, math.inf, False),
    "batch_size": (1, math.inf, False),
    "lr": (0, math.inf, True),
    "weight_decay": (0, math.inf, False),
    "latent_weight_decay": (0, math.inf, False),
    "warmup": (0, 1, False),
    "balance": (0, 1, False),
}
_LOSSES: dict[str, Any] = {
    "segmentation": SegmentationDistillation,
    "depth": DepthDistillation,
    "normals": NormalsDistillation,
    "edges": EdgesDistillation,
    "classification": ClassificationDistillation,
}
_TABLES: dict[str, Any] = {**_LOSSES, "features": FeatureDistillation}


@dataclass(frozen=True)
class Recipe:
    """Training settings with their measured result.

    Attributes:
        name: Its name, which is also its file's.
        purpose: What it is good for.
        source: Its origin.
        command: The command that measured it.
        result: The measured result.
        training: ``epochs``, ``batch_size``, ``lr``, ``weight_decay``, ``latent_weight_decay``,
            ``warmup`` and ``balance`` (the power of class frequency by which rare classes weigh
            more).
        distillation: Settings of the distillation loss by task ("segmentation", "depth",
            "normals", "edges", "classification"), and of the feature-map loss ("features"), which
            is off without such a table.
    """

    name: str
    purpose: str
    source: str = ""
    command: str = ""
    result: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    distillation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)

    def make_distillation(self, default: Any) -> Any:
        """Return a task's default distillation loss with this recipe's settings.

        Args:
            default: The task's default loss; custom losses are returned unchanged.
        """
        if isinstance(default, MultiTaskDistillation):
            parts = {name: self.make_distillation(part) for name, part in default.parts.items()}
            return MultiTaskDistillation(parts, default.task)
        for task, cls in _LOSSES.items():
            if type(default) is cls and self.distillation.get(task):
                made = cls(**self.distillation[task])
                for name in ("ignore_index", "multilabel"):
                    if hasattr(default, name):
                        setattr(made, name, getattr(default, name))
                return made
        return default

    def make_features(self) -> FeatureDistillation | None:
        """Return the feature-map loss, if the recipe has one."""
        settings = self.distillation.get("features")
        return FeatureDistillation(**settings) if settings else None


def recipe_files() -> dict[str, Path]:
    """Bundled recipe files by name, sorted."""
    # An editable install gives a traversable that is not a path, but its entries are.
    folder = resources.files("binarize") / "recipes"
    if not folder.is_dir():
        folder = Path(__file__).resolve().parents[2] / "recipes"
    files = [Path(str(entry)) for entry in folder.iterdir() if entry.name.endswith(".toml")]
    return {path.stem: path for path in sorted(files, key=lambda path: path.stem)}


def load_recipe(source: str | Path | Recipe | None = None) -> Recipe:
    """Load a recipe by bundled name or from a file; a :class:`Recipe` is returned unchanged.

    Args:
        source: Name of a bundled recipe, path of a TOML file, or a :class:`Recipe`; None is the
            default. What a file omits is taken from the default.

    Raises:
        FileError: There is no such recipe or file, or it cannot be read.
        BinarizeError: The file is invalid; lists all problems in one line.
    """
    if isinstance(source, Recipe):
        return source
    files = recipe_files()
    path = files.get(str(source or DEFAULT))
    if path is None:
        path = Path(str(source)).expanduser()
        if not path.is_file():
            near = difflib.get_close_matches(str(source), files, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(files)}"
            raise FileError("recipe", str(source), "no such recipe or file", hint)
    data = _read(path)
    problems = _problems(data, path)
    if problems:
        raise BinarizeError(
            "recipe", str(source), "; ".join(problems), "see `binarize recipes show cnn-dense`"
        )
    training, distillation = data.get("training", {}), data.get("distillation", {})
    if path != files[DEFAULT]:
        base = load_recipe(DEFAULT)
        training = {**base.training, **training}
        distillation = {**base.distillation, **distillation}
    texts = {key: data[key] for key in _TEXTS if key in data}
    return Recipe(**texts, training=training, distillation=distillation)


def validate_recipe(source: str | Path) -> list[str]:
    """Return all problems of a recipe, an empty list for a valid one.

    Args:
        source: Name of a bundled recipe, or path of a TOML file.
    """
    path = recipe_files().get(str(source), Path(source).expanduser())
    try:
        data = _read(path)
    except FileError as error:
        return [str(error)]
    return _problems(data, path)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(
            "recipe", str(path), f"cannot be read ({error.strerror})", "check the path"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileError(
            "recipe", str(path), f"is not valid TOML ({error})", "correct it"
        ) from error


def _problems(data: Mapping[str, Any], path: Path) -> list[str]:
    found = [
        f"unknown key {key!r}" for key in data if key not in (*_TEXTS, "training", "distillation")
    ]
    found += [f"{key} must be a string" for key in _TEXTS if not isinstance(data.get(key, ""), str)]
    found += [f"{key} is missing" for key in ("name", "purpose") if key not in data]
    if data.get("name", path.stem) != path.stem:
        found.append(f"name is {data['name']!r}, the file is {path.name}")
    for table in ("training", "distillation"):
        if not isinstance(data.get(table, {}), Mapping):
            return [*found, f"{table} must be a table"]
    for key, value in data.get("training", {}).items():
        if key not in _RANGES:
            near = difflib.get_close_matches(key, _RANGES, n=1)
            found.append(f"unknown key training.{key}" + (f", {near[0]!r}?" if near else ""))
            continue
        low, high, open_ = _RANGES[key]
        kind = int if key in _WHOLE else (int, float)
        good = isinstance(value, kind) and not isinstance(value, bool)
        if not good or not low <= value <= high or (open_ and value == low):
            what = "a whole number" if key in _WHOLE else "a number"
            most = "" if high == math.inf else f" to {high:g}"
            least = f"above {low:g}" if open_ else f"from {low:g}{most or ' on'}"
            found.append(f"training.{key}={value!r} must be {what} {least}")
    for task, settings in data.get("distillation", {}).items():
        if task not in _TABLES or not isinstance(settings, Mapping):
            found.append(f"unknown table distillation.{task}, use one of {', '.join(_TABLES)}")
            continue
        try:
            _TABLES[task](**settings)
        except (TypeError, BinarizeError) as error:
            found.append(f"distillation.{task}: {error}")
    return found
