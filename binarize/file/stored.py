"""A file that was read, with its header understood."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from binarize.errors import BinarizeError, FileError
from binarize.file.container import check_sum, check_version, read_file
from binarize.file.contents import COUNTERS, DESCRIPTION, FORMAT, VERSION, decode
from binarize.file.slots import Slot
from binarize.graph.plan import Plan

__all__ = ["Stored", "read_stored"]


@dataclass(frozen=True)
class Stored:
    """A file's tensors and what its header says of them.

    Attributes:
        plan: The plan of the conversion.
        tensors: By name; batch counters have their own names again.
        strides: Of tensors whose memory is not in the order of their dimensions.
        aliases: Further names of tensors that are shared, with the name they are stored under.
        dtype: Floating-point type of the network, if it is the same everywhere.
        description: What else was written about it, see :func:`binarize.save`.
    """

    plan: Plan
    tensors: Mapping[str, Tensor]
    strides: Mapping[str, Sequence[int]]
    aliases: Mapping[str, str]
    dtype: torch.dtype | None
    description: Mapping[str, Any] | None = None

    def has(self, name: str) -> bool:
        """Whether the file holds a tensor, as it is or in fewer bits."""
        return any(f"{name}{ending}" in self.tensors for ending in ("", ".bits", ".int8"))

    def name_of(self, slot: Slot) -> str:
        """The name of a slot in the file, where it may stand for several."""
        for key in slot.keys:
            if self.has(key):
                return key
        return self.aliases.get(slot.name, slot.name)


def read_stored(path: str | os.PathLike[str]) -> Stored:
    """Read a file that :func:`binarize.save` wrote.

    Raises:
        FileError: It is missing, damaged, of something else or of a newer format.
    """
    metadata, tensors = read_file(path)
    if metadata.get("format") != FORMAT:
        raise FileError(
            "path", str(path), "binarize.save did not write this file", "give a file that it wrote"
        )
    check_version(path, metadata, VERSION)
    check_sum(path)
    try:
        if metadata.get("format_version") != str(VERSION) or metadata["padding_value"] != "0":
            raise ValueError(f"format_version {metadata.get('format_version')!r}")
        recipe = {**decode(metadata["plan"]), "origin": None}
        if "origin" in metadata:
            recipe["origin"] = json.loads(metadata["origin"])
        layout = decode(metadata["layout"])
        counters = tensors.pop(COUNTERS, torch.empty(0))
        tensors.update(zip(layout["counters"], counters.unbind(), strict=True))
        dtype = layout["dtype"] and getattr(torch, layout["dtype"])
        return Stored(
            Plan.from_dict(recipe),
            tensors,
            layout["strides"],
            layout["aliases"],
            dtype,
            json.loads(metadata.get(DESCRIPTION, "null")),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        cause = error.rule if isinstance(error, BinarizeError) else f"{type(error).__name__}"
        raise FileError(
            "path",
            str(path),
            f"its header is damaged ({cause})",
            "get it again from where it was saved",
        ) from error
