"""A file that was read, with its header decoded."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from binarize.errors import BinarizeError, FileError
from binarize.file.contents import (
    COUNTERS,
    DESCRIPTION,
    TASK_VERSION,
    VERSION,
    decode,
    read_network,
)
from binarize.file.slots import Slot
from binarize.file.tasks import TASKS, base_tensors, task_plan, task_tensors
from binarize.graph.plan import Plan

__all__ = ["Stored", "read_stored"]


@dataclass(frozen=True)
class Stored:
    """The tensors of a file and the contents of its header.

    Attributes:
        plan: The plan of the conversion.
        tensors: By name; batch counters under their own names again.
        strides: The strides of tensors whose memory is not in the order of their dimensions.
        aliases: Other names of shared tensors, with the name that they are stored under.
        dtype: Floating-point dtype of the network, if it is the same everywhere.
        description: The additional data, see :func:`binarize.save`.
    """

    plan: Plan
    tensors: Mapping[str, Tensor]
    strides: Mapping[str, Sequence[int]]
    aliases: Mapping[str, str]
    dtype: torch.dtype | None
    description: Mapping[str, Any] | None = None

    def has(self, name: str) -> bool:
        """Check whether the file holds a tensor, unchanged or in fewer bits."""
        return any(f"{name}{ending}" in self.tensors for ending in ("", ".bits", ".int8"))

    def name_of(self, slot: Slot) -> str:
        """Return the name of a slot in the file, which may be one of several."""
        for key in slot.keys:
            if self.has(key):
                return key
        return self.aliases.get(slot.name, slot.name)


def read_stored(path: str | os.PathLike[str], task: str | None = None) -> Stored:
    """Read a file that :func:`binarize.save` wrote.

    Args:
        path: The file.
        task: Name of a task that shares the base's bits; ``None`` reads the base.

    Raises:
        FileError: It is missing, damaged, not from binarize, or of a newer format, or it has no
            such task.
    """
    metadata, tensors = read_network(path)
    try:
        version = str(TASK_VERSION if TASKS in metadata else VERSION)
        if metadata.get("format_version") != version or metadata["padding_value"] != "0":
            raise ValueError(f"format_version {metadata.get('format_version')!r}")
        recipe = {**decode(metadata["plan"]), "origin": None}
        if "origin" in metadata:
            recipe["origin"] = json.loads(metadata["origin"])
        plan = Plan.from_dict(recipe)
        layout, description = metadata["layout"], metadata.get(DESCRIPTION)
        if task is None:
            tensors = base_tensors(tensors)
        else:
            tensors, record = task_tensors(path, metadata, tensors, task)
            plan = task_plan(plan, record)
            layout, description = record["layout"] or layout, record["description"]
        layout = decode(layout)
        counters = tensors.pop(COUNTERS, torch.empty(0))
        tensors.update(zip(layout["counters"], counters.unbind(), strict=True))
        dtype = layout["dtype"] and getattr(torch, layout["dtype"])
        return Stored(
            plan,
            tensors,
            layout["strides"],
            layout["aliases"],
            dtype,
            json.loads(description or "null"),
        )
    except FileError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        cause = error.rule if isinstance(error, BinarizeError) else f"{type(error).__name__}"
        raise FileError(
            "path",
            str(path),
            f"its header is damaged ({cause})",
            "get the file again from its source",
        ) from error
