"""Load a network from its file."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError, FileError, ModelError
from binarize.file.container import read_file
from binarize.file.contents import COUNTERS, FORMAT, VERSION, decode
from binarize.file.slots import Slot, find_slots
from binarize.graph.origin import build_origin
from binarize.graph.plan import Plan
from binarize.graph.rewrite import apply_plan
from binarize.nn import BinaryLayer

__all__ = ["load"]


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> nn.Module:
    """Load a network that :func:`binarize.save` wrote; its outputs are those of the saved one.

    Args:
        path: The file.
        model: The float network that was converted, with any weights; unchanged, a copy of it is
            converted. Not needed if the file knows how to build it (see ``origin`` in its header).

    Returns:
        The 1-bit network in eval mode, on the device of ``model``, in the saved dtype.

    Raises:
        FileError: The file is missing, damaged, of something else or of a newer format, or does
            not say how to build its network.
        ModelError: ``model`` is not the network that was converted, or is converted already.
    """
    stored = _read(path)
    if model is not None:
        _check_model(model)
    elif stored.plan.origin is None:
        raise FileError(
            "path",
            str(path),
            "the file does not say how to build its network",
            "give the float network: load(path, model=...)",
        )
    student = _copy(model) if model is not None else build_origin(stored.plan.origin or {})
    name = type(student).__name__
    try:
        _apply(stored.plan, student)
        if stored.dtype is not None:
            student.to(stored.dtype)  # also what no file holds: buffers that are not persistent
        slots = find_slots(student)
        _compare(slots, stored, name)
    except ModelError as error:
        if model is not None:
            raise
        raise FileError(
            "path",
            str(path),
            f"the network built by its name is another one ({error.rule})",
            "install the library's version it was saved with, or give model=...",
        ) from error
    for slot in slots:
        _fill(slot, stored)
    return student.eval()


@dataclass(frozen=True)
class _Stored:
    plan: Plan
    tensors: Mapping[str, Tensor]
    strides: Mapping[str, Sequence[int]]
    aliases: Mapping[str, str]
    dtype: torch.dtype | None

    def has(self, name: str) -> bool:
        return name in self.tensors or f"{name}.bits" in self.tensors

    def stored_name(self, slot: Slot) -> str:
        """The name of a slot in the file, where it may stand for several."""
        for key in slot.keys:
            if self.has(key):
                return key
        return self.aliases.get(slot.name, slot.name)


def _read(path: str | os.PathLike[str]) -> _Stored:
    metadata, tensors = read_file(path)
    if metadata.get("format") != FORMAT:
        raise FileError(
            "path", str(path), "binarize.save did not write this file", "give a file that it wrote"
        )
    version = metadata.get("format_version", "")
    if version.isdecimal() and int(version) > VERSION:
        raise FileError(
            "path",
            str(path),
            f"its format version {version} is newer than {VERSION}, which this release reads",
            "update: pip install -U binarize-torch",
        )
    try:
        if version != str(VERSION) or metadata["padding_value"] != "0":
            raise ValueError(f"format_version {version!r}")
        recipe = {**decode(metadata["plan"]), "origin": None}
        if "origin" in metadata:
            recipe["origin"] = json.loads(metadata["origin"])
        layout = decode(metadata["layout"])
        counters = tensors.pop(COUNTERS, torch.empty(0))
        tensors.update(zip(layout["counters"], counters.unbind(), strict=True))
        dtype = layout["dtype"] and getattr(torch, layout["dtype"])
        return _Stored(Plan.from_dict(recipe), tensors, layout["strides"], layout["aliases"], dtype)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        cause = error.rule if isinstance(error, BinarizeError) else f"{type(error).__name__}"
        raise FileError(
            "path",
            str(path),
            f"its header is damaged ({cause})",
            "get it again from where it was saved",
        ) from error


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(
            "model", type(model).__name__, "not a torch.nn.Module", "give the network itself"
        )
    if any(isinstance(module, BinaryLayer) for module in model.modules()):
        raise ModelError(
            "model",
            type(model).__name__,
            "it has binary layers already",
            "give the float network that was converted",
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type == "meta":
            raise ModelError(
                "model", name, "it is on the meta device", "build the network on a real device"
            )


def _apply(plan: Plan, network: nn.Module) -> None:
    name = type(network).__name__
    try:
        apply_plan(network, plan)
    except ModelError:
        raise
    except Exception as error:
        # Whatever a network of other layers may cause: it is not the one that was planned for.
        raise ModelError(
            "model",
            name,
            f"the file's plan does not fit it ({type(error).__name__}: {error})",
            "give the float network that was converted",
        ) from error


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            "model",
            type(model).__name__,
            f"it cannot be deep-copied ({type(error).__name__}: {error})",
            "make copy.deepcopy(model) work",
        ) from error


def _compare(slots: Sequence[Slot], stored: _Stored, name: str) -> None:
    missing, other, used = [], [], set()
    for slot in slots:
        key = stored.stored_name(slot)
        used.add(key)
        if not stored.has(key):
            missing.append(slot.name)
        elif (difference := _difference(slot, key, stored)) is not None:
            other.append(difference)
    names = {key.removesuffix(".bits").removesuffix(".scale") for key in stored.tensors}
    unexpected = sorted(n for n in names if n not in used and n not in stored.aliases)
    found = [
        f"{what} {', '.join(items[:3])}{f' and {len(items) - 3} more' if len(items) > 3 else ''}"
        for what, items in (
            ("the file lacks", missing),
            ("the network lacks", unexpected),
            ("differs:", other),
        )
        if items
    ]
    if found:
        raise ModelError(
            "model",
            name,
            f"it is not the network that was saved; {'; '.join(found)}",
            "give the float network that was converted",
        )


def _difference(slot: Slot, key: str, stored: _Stored) -> str | None:
    shape = tuple(slot.tensor.shape)
    if slot.layer is None:
        if key not in stored.tensors:
            return f"{slot.name} is stored as bits"
        tensor = stored.tensors[key]
        if tuple(tensor.shape) != shape:
            return f"{slot.name} {tuple(tensor.shape)} in the file, {shape} in the network"
        if tensor.is_floating_point() != slot.tensor.is_floating_point():
            return f"{slot.name} {tensor.dtype} in the file, {slot.tensor.dtype} in the network"
        return None
    bits, scale = stored.tensors.get(f"{key}.bits"), stored.tensors.get(f"{key}.scale")
    if bits is None or scale is None:
        return f"{slot.name} is not stored as bits and scale"
    own: Any = slot.layer
    scales = own.quantizer.scale(own.weight.detach().to("meta")).numel()
    count = slot.tensor.numel()
    fits = bits.dtype == torch.uint8 and tuple(bits.shape) == ((count + 7) // 8,)
    if not fits or tuple(scale.shape) != (scales,) or not scale.is_floating_point():
        return (
            f"{slot.name} has {bits.numel()} bytes of bits and {scale.numel()} scales in the file, "
            f"{(count + 7) // 8} and {scales} in the network"
        )
    return None


def _fill(slot: Slot, stored: _Stored) -> None:
    key = stored.stored_name(slot)
    packed = slot.layer is not None
    values = stored.tensors[f"{key}.scale" if packed else key]
    shape = tuple(slot.tensor.shape)
    device = slot.tensor.device
    if key in stored.strides:
        fresh = torch.empty_strided(shape, stored.strides[key], dtype=values.dtype, device=device)
    else:
        fresh = torch.empty(shape, dtype=values.dtype, device=device)
    if slot.layer is not None:
        slot.tensor.data = fresh
        slot.layer.load_packed_weight(stored.tensors[f"{key}.bits"], values)
    else:
        slot.tensor.data = fresh.copy_(values)
