"""The contents of a network's file as a value, from which file, size and report follow."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import FileError
from binarize.file.container import Entry, check_sum, check_version, file_size, read_file
from binarize.file.slots import Slot, find_slots
from binarize.graph.plan import Plan
from binarize.nn.treated import TreatedLayer

__all__ = [
    "COUNTERS",
    "DESCRIPTION",
    "FORMAT",
    "TASK_VERSION",
    "VERSION",
    "Contents",
    "decode",
    "encode",
    "float_contents",
    "network_contents",
    "read_network",
]

FORMAT = "binarize"
VERSION = 1
TASK_VERSION = 2
"""Of files with tasks (:mod:`binarize.file.tasks`); those without keep their version."""
COUNTERS = "num_batches_tracked"
DESCRIPTION = "binarize_network"
"""Header string with what is known about a network (JSON): ``settings`` and ``recipe``."""


@dataclass(frozen=True)
class Contents:
    """Tensors and header strings of a file.

    Attributes:
        entries: The tensors.
        metadata: The strings.
    """

    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return file_size(self.entries, self.metadata)


def network_contents(model: nn.Module, plan: Plan) -> Contents:
    """List the contents of a converted network's file; they depend only on its structure.

    Tensors: ``<layer>.weight.bits`` (uint8, see :func:`binarize.ops.pack_signs`) and
    ``<layer>.weight.scale`` for each binary layer, ``<layer>.weight.int8`` and
    ``<layer>.weight.scale`` for each 8-bit one, all other entries of the state_dict under their
    own names, each tensor once, and one tensor for the batch counters of all norms.

    Strings: ``format``, ``format_version``, ``policy``, ``padding_value`` (the value of zero
    padding in a binarized feature map), ``origin`` (JSON; how to build the float network, if
    known),
    ``binarize_network`` (JSON; the model's ``binarize_description``: size, normalization, classes
    and their colors), ``plan`` and ``layout`` (JSON, compressed, base64).

    Args:
        model: The converted network.
        plan: Its plan.
    """
    slots = find_slots(model)
    recipe = plan.to_dict()
    origin = recipe.pop("origin")
    metadata = {
        "format": FORMAT,
        "format_version": str(VERSION),
        "policy": plan.policy.name,
        "padding_value": "0",
    }
    if origin is not None:
        metadata["origin"] = json.dumps(origin, sort_keys=True)
    description = getattr(model, "binarize_description", None)
    if description:
        metadata[DESCRIPTION] = json.dumps(description, sort_keys=True)
    metadata["plan"] = encode(recipe)
    metadata["layout"] = encode(_layout(slots))
    return Contents(tuple(_entries(slots)), metadata)


def read_network(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read the header's strings and the tensors of a network's file.

    Raises:
        FileError: It is missing, damaged, not from :func:`binarize.save`, or of a newer format.
    """
    metadata, tensors = read_file(path)
    if metadata.get("format") != FORMAT:
        raise FileError(
            "path", str(path), "binarize.save did not write this file", "give a file that it wrote"
        )
    check_version(path, metadata, TASK_VERSION)
    check_sum(path)
    return metadata, tensors


def float_contents(model: nn.Module) -> Contents:
    """List the contents of a safetensors file with a float network's state_dict."""
    slots = find_slots(model)
    return Contents(tuple(_plain(slot.name, slot.keys, slot.tensor) for slot in slots), {})


def _entries(slots: Sequence[Slot]) -> list[Entry]:
    entries = []
    for slot in slots:
        if slot.layer is not None:
            entries += _packed(slot)
        elif not slot.is_counter:
            entries.append(_plain(slot.name, slot.keys, slot.tensor))
    counters = [slot for slot in slots if slot.is_counter]
    if counters:
        entries.append(
            Entry(
                COUNTERS,
                torch.int64,
                (len(counters),),
                tuple(slot.name for slot in counters),
                lambda: torch.stack([slot.tensor for slot in counters]),
            )
        )
    return entries


def _plain(name: str, keys: tuple[str, ...], tensor: Tensor) -> Entry:
    return Entry(name, tensor.dtype, tuple(tensor.shape), keys, lambda: tensor)


def _packed(slot: Slot) -> list[Entry]:
    layer: Any = slot.layer
    return [
        Entry(f"{slot.name}.{part}", dtype, shape, slot.keys, partial(_part, layer, place))
        for place, (part, (dtype, shape)) in enumerate(slot.parts.items())
    ]


def _part(layer: TreatedLayer, place: int) -> Tensor:
    return layer.packed_weight()[place]


def _layout(slots: Sequence[Slot]) -> dict[str, Any]:
    """Return the tensors' strides: kernels choose by strides, so these decide the last bit."""
    kinds = {slot.tensor.dtype for slot in slots if slot.tensor.is_floating_point()}
    return {
        "aliases": {key: slot.name for slot in slots for key in slot.keys[1:]},
        "counters": [slot.name for slot in slots if slot.is_counter],
        "dtype": str(kinds.pop()).removeprefix("torch.") if len(kinds) == 1 else None,
        "strides": {
            slot.name: list(slot.tensor.stride()) for slot in slots if _is_permuted(slot.tensor)
        },
    }


def _is_permuted(tensor: Tensor) -> bool:
    """Check whether a tensor fills its memory, but not in the order of its dimensions."""
    # is_contiguous() ignores dimensions of length 1, whose strides can still select a kernel.
    if tensor.stride() == torch.empty(tensor.shape, device="meta").stride():
        return False
    expected = 1
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def encode(data: Any) -> str:
    """Encode JSON-serializable data as a string for the header."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii")


def decode(text: str) -> Any:
    """Undo :func:`encode`.

    Raises:
        ValueError: The text is corrupted.
    """
    try:
        return json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
    except zlib.error as error:
        raise ValueError(str(error)) from error
