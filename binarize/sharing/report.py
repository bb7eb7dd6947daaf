"""What the tasks of a file share with their base, and what that saves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from binarize.errors import FileError
from binarize.file import load, tasks
from binarize.file.stored import read_stored
from binarize.file.tasks import BASE, SharedTask
from binarize.graph.inputs import run_example
from binarize.graph.trace import Trace
from binarize.report.ledger import Ledger
from binarize.report.numbers import readable
from binarize.sharing.differences import Shares, differing_inputs
from binarize.sharing.one_pass import common_operations
from binarize.writing import atomic_write_dir, write_json

__all__ = ["NAMES", "TasksReport", "count_memory", "measure_tasks", "report_tasks"]

NAMES = "tasks.json", "tasks.png", "tasks.svg"


@dataclass(frozen=True)
class TasksReport:
    """Memory and operations of networks that share their bits, and where they differ.

    Operations are effective ones, as in :class:`binarize.Report`; ``None`` if unknown.

    Attributes:
        bytes: Size of the file.
        base_bytes: Its size without tasks.
        alone_bytes: Size of 1-bit networks, one per task and one for the base.
        float_bytes: Size of float networks, one per task and one for the base.
        tasks: The tasks, with their flipped bits.
        ops: Operations of each network alone, the base's under "base"; empty without networks.
        one_pass_ops: Operations if all run in one pass, see :func:`binarize.load`.
        float_ops: Operations of float networks, one per task and one for the base.
        inputs: Per task: differing and all binarized input values of each layer, in the
            order in which layers run; empty if nothing was measured.
        batches: How many inputs they were measured on.
    """

    bytes: int
    base_bytes: int
    alone_bytes: int
    float_bytes: int | None
    tasks: tuple[SharedTask, ...]
    ops: Mapping[str, float | None]
    one_pass_ops: float | None = None
    float_ops: int | None = None
    inputs: Mapping[str, Shares] | None = None
    batches: int = 0

    @property
    def alone_ops(self) -> float | None:
        """Operations of separate 1-bit networks, one per task and one for the base."""
        known = [value for value in self.ops.values() if value is not None]
        return sum(known) if known and len(known) == len(self.ops) else None

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers with flips or measured inputs, those that were measured first."""
        measured = (layer for shares in (self.inputs or {}).values() for layer in shares)
        return tuple(dict.fromkeys((*measured, *(x for task in self.tasks for x in task.layers))))

    def differing(self, task: str, layer: str | None = None) -> float | None:
        """Return the share of binarized input values in which a task differs from the base.

        Args:
            task: Its name.
            layer: A layer's name; ``None`` for all layers together.

        Returns:
            The share; ``None`` if it was not measured.
        """
        shares = (self.inputs or {}).get(task, {})
        counts = list(shares.values()) if layer is None else [shares.get(layer, (0, 0))]
        values = sum(count for _, count in counts)
        return sum(count for count, _ in counts) / values if values else None

    def rows(self) -> list[tuple[str, int | None, float | None, str, str]]:
        """Return the comparison: name, bytes, operations, and a task's two shares as text."""
        rows: list[tuple[str, int | None, float | None, str, str]] = [
            (BASE, self.base_bytes, self.ops.get(BASE), "", "")
        ]
        for task in self.tasks:
            flips = percent(task.flips / task.weights if task.weights else None)
            inputs = percent(self.differing(task.name))
            rows.append((task.name, task.bytes, self.ops.get(task.name), flips, inputs))
        if not self.tasks:
            return rows
        return [
            *rows,
            ("the file, in one pass", self.bytes, self.one_pass_ops, "", ""),
            ("1-bit networks, one per task", self.alone_bytes, self.alone_ops, "", ""),
            ("float networks, one per task", self.float_bytes, self.float_ops, "", ""),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; unknown numbers are ``None``."""
        return {
            "bytes": self.bytes,
            "base": self.base_bytes,
            "alone": self.alone_bytes,
            "float": self.float_bytes,
            "ops": {
                "networks": dict(self.ops),
                "one_pass": self.one_pass_ops,
                "alone": self.alone_ops,
                "float": self.float_ops,
            },
            "batches": self.batches,
            "tasks": [
                {**asdict(task), "inputs": (self.inputs or {}).get(task.name)}
                for task in self.tasks
            ],
        }

    def save(self, folder: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write the numbers (JSON) and a figure of the shares per layer (PNG, SVG).

        Args:
            folder: The output folder.

        Returns:
            The files.

        Raises:
            FileError: The folder cannot be written.
        """
        from binarize.sharing.figure import figure

        folder = Path(folder)
        try:
            with atomic_write_dir(folder, NAMES) as temporary:
                write_json(temporary / NAMES[0], self.to_dict())
                drawn = figure(self)
                for name in NAMES[1:]:
                    drawn.savefig(temporary / name, dpi=130)
        except OSError as error:
            raise FileError(
                "folder",
                str(folder),
                f"cannot be written ({error.strerror or error})",
                "choose a writable folder",
            ) from error
        return tuple(folder / name for name in NAMES)

    def __str__(self) -> str:
        table = [("network", "bytes", "operations", "flipped bits", "differing inputs")]
        for name, size, ops, *shares in self.rows():
            table.append((name, readable(size, "B"), readable(ops), *shares))  # type: ignore[arg-type]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in table
        ]
        return "\n".join(lines)


def percent(share: float | None) -> str:
    """Write a share; "-" if unknown."""
    return "-" if share is None else f"{share:.2%}"


def report_tasks(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    batches: Iterable[Any] = (),
    example_inputs: Any = None,
) -> TasksReport:
    """Report what the tasks of a file share with their base, and what that saves.

    Per task and layer: flipped bits, and with ``batches`` the binarized input values in which the
    task differs from the base. In total: bytes and operations against separate 1-bit networks and
    float networks, and in one pass for all tasks, in which what they have in common runs once.

    Args:
        path: A file from :func:`binarize.save`, with tasks.
        model: The base's float network, if the file does not say how to build it.
        batches: Inputs to measure on, one call each: a tensor (N, C, *spatial), a tuple of
            positional arguments or a mapping of named ones.
        example_inputs: Operations are counted for inputs of this size; ``None`` for the size that
            the base was converted with.

    Returns:
        The report: print it, read its numbers, or ``save(folder)`` them with a figure.

    Raises:
        FileError: The file is missing or damaged, or does not say how to build its network.
        ModelError: ``model`` is not the base's float network, or does not accept the inputs.
    """
    memory = count_memory(path)
    names = [BASE, *(task.name for task in memory.tasks)]
    networks = {name: load(path, model, task=name) for name in names}
    return measure_tasks(memory, networks, batches, example_inputs)


def count_memory(path: str | os.PathLike[str]) -> TasksReport:
    """Return the part of a report that needs no network.

    Args:
        path: A file from :func:`binarize.save`.

    Raises:
        FileError: It is missing or damaged.
    """
    stored = read_stored(path)  # rejects other files
    found = tasks(path)
    size = Path(path).stat().st_size
    base = size - sum(task.bytes for task in found)
    return TasksReport(
        bytes=size,
        base_bytes=base,
        alone_bytes=base + sum(task.alone_bytes for task in found),
        float_bytes=(1 + len(found)) * stored.plan.reference.get("bytes", 0) or None,
        tasks=tuple(found),
        ops={},
    )


def measure_tasks(
    memory: TasksReport,
    networks: Mapping[str, nn.Module],
    batches: Iterable[Any] = (),
    example_inputs: Any = None,
) -> TasksReport:
    """Add operations and differing inputs to a report.

    Args:
        memory: The report without them.
        networks: The file's networks in evaluation mode, the base first.
        batches: As for :func:`report_tasks`.
        example_inputs: As for :func:`report_tasks`.
    """
    runs = {name: run_example(network, example_inputs) for name, network in networks.items()}
    counted = {name: _operations(networks[name], run) for name, run in runs.items()}
    alone = _sum([ops for ops, _ in counted.values()])
    common = common_operations([(networks[name], run) for name, run in runs.items()])
    others = {name: network for name, network in networks.items() if name != BASE}
    inputs, count = differing_inputs(networks[BASE], others, batches)
    return TasksReport(
        bytes=memory.bytes,
        base_bytes=memory.base_bytes,
        alone_bytes=memory.alone_bytes,
        float_bytes=memory.float_bytes,
        tasks=memory.tasks,
        ops={name: ops for name, (ops, _) in counted.items()},
        one_pass_ops=None if alone is None or common is None else alone - common,
        float_ops=_sum([reference for _, reference in counted.values()]),
        inputs=inputs if count else None,
        batches=count,
    )


def _operations(network: nn.Module, run: Trace) -> tuple[float | None, int | None]:
    """Return the operations of a network and of its float form."""
    ledger = Ledger(network, getattr(network, "binarize_plan", None))
    ledger.enter_operations(run)
    return _sum([row.ops for row in ledger.rows()]), ledger.reference_operations(run)


def _sum(counts: Sequence[Any]) -> Any:
    return None if None in counts else sum(counts)
