"""The cost of binarizing each layer, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from binarize.page import Markup, Paged
from binarize.reading import read_json

__all__ = ["MEASURES", "MODES", "Sensitivity", "SiteSensitivity"]

MODES = {
    "alone": "the layer is binary, all others are float",
    "without": "the layer is float, all others are binary",
}
# What layers can be ranked by.
MEASURES = ("distance", "disagreement", "drop")


@dataclass(frozen=True)
class SiteSensitivity:
    """The cost of binarizing one layer: the network with the layer binary minus without.

    All differences are positive if binarizing the layer hurts. Errors are standard errors of the
    mean over the batches; ``None`` for a single batch.

    Attributes:
        site: Dotted name of the layer.
        kind: Class of the float layer.
        shape: Shape of its weight.
        action: The plan's action if the layer is not kept: ``"binarize"``, or ``"bypass"`` or
            ``"remove"`` for the projection of a shortcut.
        metric: The task's metric with this layer binary (or, in mode ``"without"``, float);
            ``None`` without a task.
        drop: Loss of the task's metric; ``None`` without a task.
        drop_error: Standard error of the metric's differences, batch by batch.
        distance: How far the output moves from the float network's: mean over all positions of the
            Kullback-Leibler divergence from its classes, in nats; for one-channel outputs, of the
            absolute difference (of the logarithm of depth).
        distance_error: Standard error of ``distance``.
        disagreement: Increase of the share of positions where the prediction differs from the
            float network's; for one-channel outputs, where depth differs by more than 25 %.
        more: By name of a policy whose bits the layer had instead, its ``"distance"``,
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
        """Return plain data for JSON; non-finite numbers become ``None``."""
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
    """The cost of binarizing each layer of a network, one layer at a time.

    Attributes:
        network: Class of the network.
        policy: Name of the policy that decides how layers become binary.
        mode: ``"alone"`` or ``"without"``, see ``MODES``.
        trained: Whether the 1-bit layers of mode ``"without"`` come from a trained network.
        metric: Name of the task's metric; ``None`` without a task.
        float_metric: The float network's metric, with norms re-estimated as in all others.
        binary_metric: That of the network with all layers binary; only in mode ``"without"``.
        binary_distance: Its distance from the float network's output; only in mode ``"without"``.
        binary_disagreement: Its disagreement with it; only in mode ``"without"``.
        images: Number of images in the measurement.
        calibration: Number of images for re-estimating the norms.
        planned: Number of layers to measure; more than ``len(sites)`` in a partial result.
        sites: The layers, in order of execution.
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
        """Return the layers, the most sensitive first; those that are not a number come before all.

        Args:
            by: ``"distance"``, ``"disagreement"`` or ``"drop"``.
        """
        return tuple(sorted(self.sites, key=lambda row: _rank(getattr(row, by)), reverse=True))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; :meth:`from_dict` reads it."""
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
            FileError: The file is missing, or is not a sensitivity.
        """
        return read_json(
            path,
            cls.from_dict,
            argument="sensitivity",
            what="the result of binarize sensitivity",
            remedy="give the sensitivity.json that binarize sensitivity wrote",
        )

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write ``sensitivity.json`` and ``sensitivity.png``; both, or none.

        Args:
            folder: The folder to write to, created if needed. Other files in it stay.

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
        """Describe the measurement in one line."""
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
    """Return the measured losses as they were before :func:`_finite`."""
    told = {key: math.nan if data[key] is None else float(data[key]) for key in MEASURES[:2]}
    return {**told, "drop": data["drop"]}


def _rank(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
