"""What binarizing each layer costs, as plain data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from binarize.errors import FileError
from binarize.page import Markup, Paged

__all__ = ["MEASURES", "MODES", "Sensitivity", "SiteSensitivity"]

MODES = {
    "alone": "the layer is binary, all others are float",
    "without": "the layer is float, all others are binary",
}
# What layers can be ranked by.
MEASURES = ("distance", "disagreement", "drop")


@dataclass(frozen=True)
class SiteSensitivity:
    """What binarizing one layer costs: that of the network with it, less that without.

    All differences are positive where binarizing the layer hurts. Errors are standard errors of
    the mean over the batches; ``None`` of a single batch.

    Attributes:
        site: Dotted name of the layer.
        kind: Class of the float layer.
        shape: Shape of its weight.
        action: What the plan does to it where it is not kept: ``"binarize"``, or for the
            projection of a shortcut ``"bypass"`` or ``"remove"``.
        metric: The task's metric of the network that was made for this layer; ``None`` without a
            task.
        drop: What the task's metric loses; ``None`` without a task.
        drop_error: Standard error of the metric's differences, batch by batch.
        distance: By how much the output moves away from the float network's: mean over all
            positions of the Kullback-Leibler divergence from its classes, in nats; for maps of
            one channel, of the absolute difference (of the logarithm of depth).
        distance_error: Standard error of ``distance``.
        disagreement: By how much the share of positions grows where another class is predicted
            than by the float network; for maps of one channel, another depth by over 25 %.
        more: By the name of a policy whose bits the layer had instead: its ``"distance"``,
            ``"disagreement"`` and ``"drop"`` with these.
    """

    site: str
    kind: str
    shape: tuple[int, ...]
    action: str
    metric: float | None
    drop: float | None
    drop_error: float | None
    distance: float
    distance_error: float | None
    disagreement: float
    more: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not finite is ``None``."""
        row = {key: _finite(value) for key, value in asdict(self).items()}
        more = {name: {k: _finite(v) for k, v in loss.items()} for name, loss in self.more.items()}
        row = {**row, "shape": list(self.shape), "more": more}
        return row if more else {key: value for key, value in row.items() if key != "more"}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SiteSensitivity:
        """Read what :meth:`to_dict` wrote."""
        row = {key: data[key] for key in (field.name for field in fields(cls)) if key != "more"}
        row.update(_losses(row), shape=tuple(map(int, row["shape"])))
        row["more"] = {name: _losses(loss) for name, loss in data.get("more", {}).items()}
        return cls(**row)


@dataclass(frozen=True)
class Sensitivity(Paged):
    """What binarizing each layer of a network costs, one layer at a time.

    Attributes:
        network: Class of the network.
        policy: Name of the policy that says how layers become binary.
        mode: ``"alone"`` or ``"without"``, see ``MODES``.
        trained: Whether the 1-bit layers of mode ``"without"`` are a trained network's.
        metric: Name of the task's metric; ``None`` without a task.
        float_metric: The float network's metric, with norms measured anew as in all others.
        binary_metric: That of the network with all layers binary; mode ``"without"`` only.
        binary_distance: Its distance from the float network's output; mode ``"without"`` only.
        binary_disagreement: Its disagreement with it; mode ``"without"`` only.
        images: Number of images that were measured on.
        calibration: Number of images that the norms were measured on.
        planned: Number of layers there are to measure; more than ``len(sites)`` in a part of a
            result.
        sites: The layers, in the order in which they run.
    """

    network: str
    policy: str
    mode: str
    trained: bool
    metric: str | None
    float_metric: float | None
    binary_metric: float | None
    binary_distance: float | None
    binary_disagreement: float | None
    images: int
    calibration: int
    planned: int
    sites: tuple[SiteSensitivity, ...]

    @property
    def more(self) -> tuple[str, ...]:
        """The policies whose bits layers had instead."""
        return tuple(dict.fromkeys(name for row in self.sites for name in row.more))

    def ranked(self, by: str = "distance") -> tuple[SiteSensitivity, ...]:
        """The layers, those that hurt most first; what is not a number hurts most of all.

        Args:
            by: ``"distance"``, ``"disagreement"`` or ``"drop"``.
        """
        return tuple(sorted(self.sites, key=lambda row: _rank(getattr(row, by)), reverse=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; :meth:`from_dict` reads it."""
        told = {field.name: _finite(getattr(self, field.name)) for field in fields(self)}
        return {**told, "sites": [row.to_dict() for row in self.sites]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sensitivity:
        """Read what :meth:`to_dict` wrote."""
        told = {field.name: data[field.name] for field in fields(cls)}
        rows = tuple(SiteSensitivity.from_dict(row) for row in data["sites"])
        return cls(**{**told, "sites": rows})

    @classmethod
    def load(cls, path: str | Path) -> Sensitivity:
        """Read ``sensitivity.json``.

        Raises:
            FileError: The file is missing, or is something else.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise FileError(
                "sensitivity",
                str(path),
                f"cannot be read ({error.strerror or error})",
                "give the sensitivity.json that binarize sensitivity wrote",
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileError(
                "sensitivity",
                str(path),
                f"is not the result of binarize sensitivity ({type(error).__name__}: {error})",
                "give the sensitivity.json that binarize sensitivity wrote",
            ) from error

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write ``sensitivity.json`` and ``sensitivity.png``; both, or none.

        Args:
            folder: Where to; made if needed. Other files in it stay.

        Returns:
            The files.

        Raises:
            FileError: The folder cannot be written.
        """
        from binarize.report.sensitivity_files import write

        return write(self, Path(folder))

    def _page(self) -> str:
        from binarize.report.sensitivity_page import sensitivity_page

        return sensitivity_page(self)

    def _notebook(self) -> Markup:
        from binarize.report.sensitivity_page import notebook_html

        return notebook_html(self)

    def __str__(self) -> str:
        lines = [self.headline()]
        heads = ("Layer", "Action", "Distance", "±", "Disagree", "Drop", "±", *self.more)
        rows: list[Sequence[str]] = [heads]
        for row in self.ranked():
            numbers = (row.distance, row.distance_error, row.disagreement, row.drop, row.drop_error)
            more = (row.more.get(name, {}).get("distance") for name in self.more)
            rows.append((row.site, row.action, *map(_short, (*numbers, *more))))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for cells in rows:
            words = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
            words += [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
            lines.append("  ".join(words).rstrip())
        return "\n".join(lines)

    def headline(self) -> str:
        """What was measured, in a line."""
        kind = ", trained" if self.trained else ", not trained"
        text = (
            f"{self.network}, {self.policy}{kind}: {MODES[self.mode]}; "
            f"{self.images} images, norms from {self.calibration}"
        )
        if self.metric is not None:
            text += f"; {self.metric} of the float network {_short(self.float_metric)}"
            if self.binary_metric is not None:
                text += f", of the 1-bit one {_short(self.binary_metric)}"
        if len(self.sites) < self.planned:
            text += f"; only {len(self.sites)} of {self.planned} layers so far"
        return text


def _losses(data: Mapping[str, Any]) -> dict[str, float | None]:
    """What is measured, as it was before :func:`_finite`."""
    told = {key: math.nan if data[key] is None else float(data[key]) for key in MEASURES[:2]}
    return {**told, "drop": data["drop"]}


def _rank(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
