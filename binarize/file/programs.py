"""Programs of a packed network in a file, loaded without the network or its library."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from binarize.errors import FileError, ModelError
from binarize.file.container import Entry, check_sum, check_version, read_file, read_metadata
from binarize.file.contents import DESCRIPTION, Contents, decode, encode
from binarize.kernels import layout
from binarize.lower import PackedNetwork, PackedPrograms
from binarize.lower.program import Program, from_data, to_data

__all__ = ["FORMAT", "holds_programs", "load_programs", "program_contents"]

FORMAT = "binarize-programs"
# Version 1 has no general programs, and files without any are still written as version 1.
VERSION = 2


def program_contents(
    packed: PackedNetwork, description: Mapping[str, Any] | None = None
) -> Contents:
    """Return the contents of a file with the current programs of a packed network.

    These are the programs' constants, each once, in the kernels' own layout, and their operations
    (JSON, compressed, base64); no code. General programs, for inputs of all sizes, are recorded
    first where the network permits it.

    Args:
        packed: A packed network that was called, or packed with example inputs.
        description: Additional data for the header, see :func:`binarize.save`.

    Raises:
        ModelError: It has no programs, or they cannot be stored.
    """
    packed.generalize()
    fixed = [(key, p) for key, p in packed.programs.items() if p.conditions is None]
    general = [(key, p) for key, p in packed.general if _is_storable(key, p)]
    every = [(key, p) for key, p in [*fixed, *general] if not _under_autocast(key)]
    if not every:
        raise ModelError(
            "model",
            type(packed.network).__name__,
            packed.unfused or "it has no program yet, because it was not called",
            "save the 1-bit network that it was packed from"
            if packed.unfused
            else "give inputs: binarize.pack(model, example_inputs=...)",
        )
    names: dict[int, str] = {}
    entries, strides = [], {}
    for value in (value for _, p in every for value in _constants(p.module)):
        if id(value) in names:
            continue
        name = names[id(value)] = f"constant.{len(names)}"
        entries.append(_entry(name, value))
        if not value.is_contiguous():
            strides[name] = list(value.stride())
    programs = [to_data(key, program, names) for key, program in every]
    metadata = {
        "format": FORMAT,
        "format_version": str(VERSION if general else 1),
        "weight_layout": str(layout.VERSION),
        "programs": encode({"programs": programs, "strides": strides}),
    }
    if description is None:
        description = getattr(packed.network, "binarize_description", None)
    if description:
        metadata[DESCRIPTION] = json.dumps(dict(description), sort_keys=True)
    return Contents(tuple(entries), metadata)


def holds_programs(path: str | os.PathLike[str]) -> bool:
    """Check whether a file holds programs (:func:`program_contents`)."""
    return read_metadata(path).get("format") == FORMAT


def load_programs(path: str | os.PathLike[str]) -> PackedPrograms:
    """Load a file that holds programs (:func:`program_contents`).

    Raises:
        FileError: The file is damaged or of a newer format.
    """
    metadata, tensors = read_file(path)
    check_version(path, metadata, VERSION)
    check_sum(path)
    _check_layout(path, metadata)
    try:
        told = decode(metadata["programs"])
        constants = {}
        for name, value in tensors.items():
            stride = told["strides"].get(name, value.stride())
            # Always a copy: the kernels need 8-byte alignment.
            fresh = torch.empty_strided(value.shape, stride, dtype=value.dtype)
            constants[name] = fresh.copy_(value)
        found = [from_data(data, constants) for data in told["programs"]]
        fixed = {key: program for key, program in found if program.conditions is None}
        general = [each for each in found if each[1].conditions is not None]
        made: Any = PackedPrograms(fixed, general)
        made.binarize_description = json.loads(metadata.get(DESCRIPTION, "null"))
        return made  # type: ignore[no-any-return]
    except Exception as error:
        raise FileError(
            "path",
            str(path),
            f"its programs are damaged or of another version of torch ({type(error).__name__})",
            "save it again with this version",
        ) from error


def _check_layout(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    found = metadata.get("weight_layout", "1")  # older files do not name it and have the first
    if found != str(layout.VERSION):
        raise FileError(
            "path",
            str(path),
            f"its weights have layout {found}, but this release's kernels read {layout.VERSION}",
            "save it again with this version",
        )


def _is_storable(key: Any, program: Program) -> bool:
    """Check a general program, which a file can do without."""
    try:
        to_data(key, program, {id(value): "" for value in _constants(program.module)})
    except ModelError:
        return False
    return True


def _under_autocast(key: Any) -> bool:
    return bool(key[2][0])


def _constants(module: Any) -> Iterator[Tensor]:
    for node in module.graph.find_nodes(op="get_attr"):
        yield getattr(module, node.target)


def _entry(name: str, value: Tensor) -> Entry:
    return Entry(name, value.dtype, tuple(value.shape), (name,), lambda: value)
