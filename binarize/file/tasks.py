"""Further tasks in a network's file: what differs from the base, and nothing else.

Tensors of a task have names that begin with ``task/<name>/``. A tensor that equals the base's is
not stored. Of binary weights, the flipped bits are stored: either their distances, or all bits' XOR
with the base's, compressed with zlib, whichever is smaller. Tensors of the base's shape are stored
one behind the other, one tensor per dtype, as their names would take more bytes than some of them.
"""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError, FileError, ModelError
from binarize.file.container import Entry, write_file
from binarize.file.contents import (
    DESCRIPTION,
    TASK_VERSION,
    VERSION,
    Contents,
    decode,
    encode,
    network_contents,
    read_network,
)
from binarize.graph.heads import plan_with_heads
from binarize.graph.plan import Plan

__all__ = [
    "BASE",
    "TASKS",
    "SharedTask",
    "base_tensors",
    "check_task_name",
    "fingerprint",
    "remove_task",
    "save_task",
    "task_description",
    "task_plan",
    "task_tensors",
    "tasks",
]

TASKS = "tasks"
"""Header string with what each task has of its own apart from tensors (JSON, compressed)."""
BASE = "base"
"""The base's name among tasks."""
_PREFIX, _FLIPS, _JOINED = "task/", ".flips", "joined."
_GAPS, _BITS = 0, 1
# Strings of the header in the order in which a file without tasks has them.
_ORDER = ("format", "format_version", "policy", "padding_value", "origin", DESCRIPTION, "plan")


@dataclass(frozen=True)
class SharedTask:
    """What a task adds to a file.

    Attributes:
        name: Its name.
        flips: Number of flipped binary weights.
        weights: Number of binary weights that it shares with the base.
        flip_bytes: Bytes of the flips.
        own_bytes: Bytes of the other tensors.
        bytes: By how much the file would shrink without the task.
        alone_bytes: Bytes of its tensors in a file of its own, with all bits.
        heads: Output layers with another number of channels.
        layers: Flipped and shared binary weights of each layer, by its name.
    """

    name: str
    flips: int
    weights: int
    flip_bytes: int
    own_bytes: int
    bytes: int
    alone_bytes: int
    heads: Mapping[str, int]
    layers: Mapping[str, tuple[int, int]]


# Flips


def encode_flips(bits: Tensor, base: Tensor) -> Tensor:
    """Return the differences of two bit strings, compressed (uint8, 1-D).

    Args:
        bits: uint8, 1-D.
        base: The same number of bytes.
    """
    differing = np.bitwise_xor(bits.numpy(), base.numpy())
    places = np.flatnonzero(np.unpackbits(differing, bitorder="little"))
    gaps = np.diff(places, prepend=-1) - 1
    # A distance of 255 and more is written as several bytes 255 and the rest.
    whole, rest = np.divmod(gaps, 255)
    text = np.full(len(gaps) + int(whole.sum()), 255, np.uint8)
    text[np.cumsum(whole + 1) - 1] = rest
    options = (_GAPS, text.tobytes()), (_BITS, differing.tobytes())
    packed = min((bytes([how]) + zlib.compress(data, 9) for how, data in options), key=len)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def _differing(bits: Tensor, base: Tensor) -> int:
    return int(np.unpackbits(np.bitwise_xor(bits.numpy(), base.numpy())).sum())


def decode_flips(flips: Tensor, base: Tensor) -> Tensor:
    """Undo :func:`encode_flips`.

    Raises:
        ValueError: The flips do not fit the base.
    """
    data = flips.numpy().tobytes()
    try:
        text = np.frombuffer(zlib.decompress(data[1:]), np.uint8)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if data[0] == _GAPS:
        ends = np.flatnonzero(text != 255)
        if len(text) and (not len(ends) or ends[-1] != len(text) - 1):
            raise ValueError("a distance without an end")
        sums = np.cumsum(text.astype(np.int64))[ends]
        places = sums + np.arange(len(ends))
        if len(places) and places[-1] >= 8 * len(base):
            raise ValueError("a flip outside the weight")
        differing = np.zeros(8 * len(base), np.uint8)
        differing[places] = 1
        text = np.packbits(differing, bitorder="little")
    if data[0] not in (_GAPS, _BITS) or len(text) != len(base):
        raise ValueError("flips of another weight")
    return torch.from_numpy(np.bitwise_xor(base.numpy(), text))


# Writing


def fingerprint(model: nn.Module, plan: Plan) -> str:
    """Return what identifies a base: a hash of everything that its file holds.

    Args:
        model: The converted network.
        plan: Its plan.
    """
    return _fingerprint({e.name: e.read() for e in network_contents(model, plan).entries})


def _fingerprint(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    return value.reshape(-1).view(torch.uint8).numpy().tobytes()


def check_task_name(name: object, argument: str = "task") -> None:
    """Raise an error if a name cannot be a task's."""
    if not isinstance(name, str) or not name.strip() or "/" in name or name == BASE:
        rule = f"must be a word without '/', other than {BASE!r}"
        raise BinarizeError(argument, name, rule, "write for example depth")


def save_task(model: nn.Module, plan: Plan, path: str | os.PathLike[str], name: str) -> None:
    """Write a task into its base's file, or replace it there.

    Args:
        model: A network from :func:`binarize.add_task`, trained or not.
        plan: Its plan.
        path: The base's file.
        name: Name of the task.

    Raises:
        BinarizeError: The name is empty or has a slash.
        ModelError: The network does not share the bits of a base.
        FileError: There is no such file, it holds another base, or it cannot be written. The file
            stays as it was.
    """
    check_task_name(name)
    base = getattr(model, "binarize_base", None)
    if base is None:
        raise ModelError(
            "model",
            type(model).__name__,
            "it does not share the bits of a base",
            "make it with binarize.add_task, or save it to a file of its own without task=",
        )
    metadata, tensors = read_network(path)
    shared = base_tensors(tensors)
    if _fingerprint(shared) != base:
        raise FileError(
            "path",
            str(path),
            "it does not hold the base that this task was made for",
            "give the base's file, as it was when add_task was called",
        )
    known = _known(metadata)
    own, prefix = _without(tensors, name), f"{_PREFIX}{name}/"
    joined: dict[str, dict[str, Tensor]] = defaultdict(dict)
    contents = network_contents(model, plan)
    for entry in contents.entries:
        value = entry.read().detach().cpu().contiguous()
        given = shared.get(entry.name)
        key = f"{prefix}{entry.name}"
        if given is None or given.dtype != value.dtype or given.shape != value.shape:
            own[key] = value
        elif entry.name.endswith(".bits"):
            if _differing(value, given):
                own[f"{key}{_FLIPS}"] = encode_flips(value, given)
        elif _bytes(given) != _bytes(value):
            joined[str(value.dtype).removeprefix("torch.")][entry.name] = value
    places = {key: place for place, key in enumerate(sorted(shared))}
    for dtype, values in joined.items():
        in_order = [values[key].flatten() for key in sorted(values)]
        own[f"{prefix}{_JOINED}{dtype}"] = torch.cat(in_order)
    layout = contents.metadata["layout"]
    known[name] = {
        "heads": dict(plan.heads),
        "layout": None if layout == metadata.get("layout") else layout,
        "description": contents.metadata.get(DESCRIPTION),
        "joined": {dtype: [places[key] for key in sorted(v)] for dtype, v in joined.items()},
    }
    _write(path, own, metadata, known)


def _without(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return a file's tensors without those of a task."""
    return {k: v for k, v in tensors.items() if not k.startswith(f"{_PREFIX}{name}/")}


def remove_task(path: str | os.PathLike[str], name: str) -> None:
    """Remove a task from a file; the base and other tasks stay.

    Args:
        path: The file.
        name: Name of the task.

    Raises:
        FileError: There is no such file or task, or it cannot be written.
    """
    metadata, tensors = read_network(path)
    known = _known(metadata)
    _check_name(path, known, name)
    del known[name]
    _write(path, _without(tensors, name), metadata, known)


def _write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    known: Mapping[str, Any],
) -> None:
    contents = _contents(tensors, metadata, known)
    write_file(path, contents.entries, contents.metadata)


def _contents(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], known: Mapping[str, Any]
) -> Contents:
    header = {**metadata, "format_version": str(TASK_VERSION if known else VERSION)}
    for name in (TASKS, "checksum"):
        header.pop(name, None)
    ranks = {name: rank for rank, name in enumerate(_ORDER)}
    header = {k: header[k] for k in sorted(header, key=lambda k: (ranks.get(k, len(ranks)), k))}
    if known:
        header[TASKS] = encode(known)
    entries = [
        Entry(key, value.dtype, tuple(value.shape), (key,), partial(_same, value))
        for key, value in tensors.items()
    ]
    return Contents(tuple(entries), header)


def _same(value: Tensor) -> Tensor:
    return value


# Reading


def _known(metadata: Mapping[str, str]) -> dict[str, Any]:
    return dict(decode(metadata[TASKS])) if TASKS in metadata else {}


def _check_name(path: str | os.PathLike[str], known: Iterable[str], name: str) -> None:
    if name not in known:
        there = ", ".join(sorted(known))
        raise FileError(
            "path",
            str(path),
            f"it has no task {name!r}",
            f"use one of {there}" if there else "it holds one network: load it without task=",
        )


def base_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a file's tensors without those of its tasks."""
    return {key: value for key, value in tensors.items() if not key.startswith(_PREFIX)}


def task_tensors(
    path: str | os.PathLike[str],
    metadata: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    name: str,
) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Return the tensors of a task's network, and what the header says about it.

    Args:
        path: The file, for errors.
        metadata: Its header's strings.
        tensors: Its tensors.
        name: Name of the task.

    Raises:
        FileError: There is no such task.
        ValueError: The task does not fit the base.
    """
    known = _known(metadata)
    _check_name(path, known, name)
    merged, record = base_tensors(tensors), known[name]
    names = sorted(merged)
    start = f"{_PREFIX}{name}/"
    for key, value in tensors.items():
        if not key.startswith(start):
            continue
        key = key.removeprefix(start)
        if key.endswith(_FLIPS):
            bits = key.removesuffix(_FLIPS)
            merged[bits] = decode_flips(value, merged[bits])
        elif key.startswith(_JOINED):
            places = [names[place] for place in record["joined"][key.removeprefix(_JOINED)]]
            lengths = [merged[place].numel() for place in places]
            for place, part in zip(places, value.split(lengths), strict=True):
                merged[place] = part.view(merged[place].shape)
        else:
            merged[key] = value
    return merged, record


def task_description(
    path: str | os.PathLike[str], metadata: Mapping[str, str], name: str
) -> str | None:
    """Return the additional data of a task as JSON, see :func:`binarize.save`.

    Args:
        path: The file, for errors.
        metadata: Its header's strings.
        name: Name of the task.

    Raises:
        FileError: There is no such task.
    """
    known = _known(metadata)
    _check_name(path, known, name)
    text: str | None = known[name]["description"]
    return text


def task_plan(plan: Plan, record: Mapping[str, Any]) -> Plan:
    """Return the plan of a task's network.

    Args:
        plan: The base's plan.
        record: What the header says about the task.
    """
    heads = {site: int(channels) for site, channels in record["heads"].items()}
    return plan_with_heads(plan, heads) if heads else plan


def tasks(path: str | os.PathLike[str]) -> list[SharedTask]:
    """List the tasks of a file by name, with what each adds to it.

    Args:
        path: A file from :func:`binarize.save`.

    Raises:
        FileError: It is missing or damaged.
    """
    metadata, tensors = read_network(path)
    known = _known(metadata)
    whole = _contents(tensors, metadata, known).size
    base = base_tensors(tensors)
    bits = {key: key.removesuffix(".weight.bits") for key in base if key.endswith(".weight.bits")}
    recipe = {**decode(metadata["plan"]), "origin": None} if known else {"decisions": ()}
    weights = {row["site"]: math.prod(row.get("shape", ())) for row in recipe["decisions"]}
    found = []
    for name, record in known.items():
        start = f"{_PREFIX}{name}/"
        sizes = {k: v.nbytes for k, v in tensors.items() if k.startswith(start)}
        rest = {k: v for k, v in tensors.items() if k not in sizes}
        without = _contents(rest, metadata, {k: v for k, v in known.items() if k != name}).size
        flip_bytes = sum(size for key, size in sizes.items() if key.endswith(_FLIPS))
        merged, _ = task_tensors(path, metadata, tensors, name)
        layers = {
            layer: (_differing(merged[key], base[key]), weights.get(layer, 8 * len(base[key])))
            for key, layer in bits.items()
            if merged[key].shape == base[key].shape
        }
        found.append(
            SharedTask(
                name,
                sum(flips for flips, _ in layers.values()),
                sum(count for _, count in layers.values()),
                flip_bytes,
                sum(sizes.values()) - flip_bytes,
                whole - without,
                sum(value.nbytes for value in merged.values()),
                dict(record["heads"]),
                layers,
            )
        )
    return found
