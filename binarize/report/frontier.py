"""Comparison of networks by accuracy, time and size, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from binarize.errors import BinarizeError, FileError
from binarize.extras import require
from binarize.page import Markup, Paged
from binarize.reading import read_json
from binarize.writing import atomic_write

__all__ = ["Frontier", "Point"]

_FORMAT = "binarize frontier"


@dataclass(frozen=True)
class Point:
    """A measured network.

    Attributes:
        name: Its label: a policy, a budget, a version of the float network.
        kind: ``"binarized"``, ``"float"`` (the float network, in any version) or ``"rival"``
            (another float network with the same training, in any version).
        metrics: The task's metric, by split.
        seconds: Seconds per call, one per round; the points took turns.
        bytes: Size of its file.
        file: The file, relative to the frontier's folder; empty if none was kept.
    """

    name: str
    kind: str
    metrics: Mapping[str, float]
    seconds: tuple[float, ...]
    bytes: int
    file: str = ""

    @property
    def milliseconds(self) -> float:
        """Median latency."""
        return 1e3 * median(self.seconds)


@dataclass(frozen=True)
class Frontier(Paged):
    """Points of accuracy, time and size.

    Attributes:
        network: The float network's specification.
        metric: Name of the metric.
        higher_is_better: Whether larger values of it are better.
        inputs: Size of the inputs for the timing.
        machine: Processor, kernels and threads, in words.
        points: The points, beginning with the original float network.
    """

    network: str
    metric: str
    higher_is_better: bool
    inputs: str
    machine: str
    points: tuple[Point, ...]

    @property
    def split(self) -> str:
        """The split used to compare points: test if there is one."""
        return "test" if all("test" in point.metrics for point in self.points) else "val"

    def lost(self, point: Point) -> float:
        """Return how much worse than the float network a point is; negative if better."""
        split = self.split
        difference = self.points[0].metrics[split] - point.metrics[split]
        return difference if self.higher_is_better else -difference

    def dominated_by(self, point: Point) -> Point | None:
        """Return a point that is no worse in accuracy, time and size, and better in one of them.

        Args:
            point: One of ``points``.

        Returns:
            The most accurate such point, or ``None``: the point lies on the frontier.
        """
        mine = self._costs(point)
        found = [
            other
            for other in self.points
            if self._costs(other) != mine
            and all(a <= b for a, b in zip(self._costs(other), mine, strict=True))
        ]
        return min(found, key=self.lost) if found else None

    def _costs(self, point: Point) -> tuple[float, float, float]:
        return self.lost(point), point.milliseconds, point.bytes

    def best(self, lost: float) -> Point:
        """Return the fastest point within a loss, on a tie the smallest.

        Args:
            lost: How much worse the metric may be than the float network's, in its own unit.

        Raises:
            BinarizeError: Only versions of the float network itself lose so little.
        """
        found = [p for p in self.points if p.kind != "float" and self.lost(p) <= lost]
        if not found:
            others = [p for p in self.points if p.kind != "float"]
            nearest = min(others, key=self.lost) if others else None
            nearest_loss = f"; {nearest.name} loses {self.lost(nearest):.4f}" if nearest else ""
            raise BinarizeError(
                "lost",
                lost,
                f"every network loses more{nearest_loss}",
                "allow more, train longer, or give larger budgets",
            )
        return min(found, key=lambda p: (p.milliseconds, p.bytes))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; :meth:`from_dict` reads it."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Frontier:
        """Read what :meth:`to_dict` wrote."""
        known = {key: data[key] for key in cls.__dataclass_fields__}
        rows = [{**row, "seconds": tuple(row["seconds"])} for row in known["points"]]
        known["points"] = tuple(Point(**row) for row in rows)
        return cls(**known)

    def save(self, folder: str | Path) -> list[str]:
        """Write ``frontier.json``, ``frontier.png`` and the page ``frontier.html``.

        Args:
            folder: The existing folder to write to.

        Returns:
            The names of the files.

        Raises:
            FileError: They cannot be written.
        """
        from binarize.report.frontier_figure import figure
        from binarize.report.frontier_page import frontier_page

        require("matplotlib")
        folder = Path(folder)
        try:
            with atomic_write(folder / "frontier.json") as temporary:
                text = json.dumps(self.to_dict(), indent=1)
                temporary.write_text(f"{text}\n", encoding="utf-8")
            with atomic_write(folder / "frontier.png") as temporary:
                figure(self).savefig(temporary, format="png")
            with atomic_write(folder / "frontier.html") as temporary:
                temporary.write_text(frontier_page(self), encoding="utf-8")
        except OSError as error:
            cause = error.strerror or error
            raise FileError(
                "folder", str(folder), f"cannot be written to ({cause})", "check folder and disk"
            ) from error
        return ["frontier.json", "frontier.png", "frontier.html"]

    def _page(self) -> str:
        from binarize.report.frontier_page import frontier_page

        return frontier_page(self)

    def _notebook(self) -> Markup:
        from binarize.report.frontier_page import notebook_html

        return notebook_html(self)

    @classmethod
    def load(cls, path: str | Path) -> Frontier:
        """Read ``frontier.json``.

        Raises:
            FileError: There is no such file, or it is not a frontier.
        """
        return read_json(
            path,
            cls.from_dict,
            form=_FORMAT,
            argument="path",
            what="a readable frontier",
            remedy="write one: binarize frontier",
        )

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table, header first."""
        splits = list(dict.fromkeys(split for p in self.points for split in p.metrics))
        first = self.points[0]
        head = ("Network", *(f"{self.metric}, {s}" for s in splits), "ms", "faster", "MB")
        made: list[tuple[str, ...]] = [(*head, "smaller", "dominated by")]
        for point in self.points:
            other = self.dominated_by(point)
            values = [f"{point.metrics[s]:.4f}" if s in point.metrics else "" for s in splits]
            made.append(
                (
                    point.name,
                    *values,
                    f"{point.milliseconds:.2f}",
                    f"{first.milliseconds / point.milliseconds:.2f}×",
                    f"{point.bytes / 1e6:.3f}",
                    f"{first.bytes / point.bytes:.1f}×",
                    "" if other is None else other.name,
                )
            )
        return made

    def __str__(self) -> str:
        return "\n".join(
            [
                self.headline(),
                *_aligned(self.rows()),
                self.advice(),
            ]
        )

    def headline(self) -> str:
        """Return the network, the inputs and the machine in one line."""
        return f"{self.network}, {self.inputs}; {self.machine}"

    def advice(self, lost: Sequence[float] = (0.01, 0.03)) -> str:
        """Recommend a point for each permitted loss, one line each."""
        lines = []
        for most in lost:
            try:
                point = self.best(most)
            except BinarizeError as error:
                lines.append(f"for at most {most:g} lost: none; {error.rule}")
                continue
            where = f" ({point.file})" if point.file else ""
            lines.append(
                f"for at most {most:g} lost: {point.name}{where}, which loses "
                f"{self.lost(point):.4f}"
            )
        return "\n".join(lines)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
