"""Check whether a file fits a network, and describe the differences if not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from binarize.errors import ModelError
from binarize.file.slots import Slot
from binarize.file.stored import Stored
from binarize.nn.treated import StoredParts

__all__ = ["check_fit"]


_PARTS = ("bits", "int8", "scale")


def check_fit(slots: Sequence[Slot], stored: Stored, name: str) -> None:
    """Compare the names, shapes and dtypes of all tensors.

    Args:
        slots: The network's tensors.
        stored: The file.
        name: Class of the network, for the error message.

    Raises:
        ModelError: Something is missing, unexpected or of another shape; lists three of each.
    """
    missing, different, used = [], [], set()
    known: dict[tuple[str, torch.Size], StoredParts] = {}
    for slot in slots:
        key = stored.name_of(slot)
        used |= {f"{key}.{part}" for part in slot.parts} or {key}
        if not stored.has(key):
            missing.append(slot.name)
        elif (difference := _difference(slot, key, stored, known)) is not None:
            different.append(difference)
            used |= {key, *(f"{key}.{part}" for part in _PARTS)}
    unexpected = [key for key in stored.tensors if key not in used]
    found = [
        f"{what} {', '.join(items[:3])}{f' and {len(items) - 3} more' if len(items) > 3 else ''}"
        for what, items in (
            ("the file lacks", missing),
            ("the network lacks", sorted(unexpected)),
            ("differs:", different),
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


def _difference(
    slot: Slot, key: str, stored: Stored, known: dict[tuple[str, torch.Size], StoredParts]
) -> str | None:
    shape = tuple(slot.tensor.shape)
    if slot.layer is None:
        if key not in stored.tensors:
            return f"{slot.name} is stored in fewer bits"
        tensor = stored.tensors[key]
        if tuple(tensor.shape) != shape:
            return f"{slot.name} {tuple(tensor.shape)} in the file, {shape} in the network"
        if tensor.is_floating_point() != slot.tensor.is_floating_point():
            return f"{slot.name} {tensor.dtype} in the file, {slot.tensor.dtype} in the network"
        return None
    alike = slot.layer.coding, slot.tensor.shape
    if alike not in known:
        known[alike] = slot.parts
    parts = known[alike]
    given = {part: stored.tensors.get(f"{key}.{part}") for part in parts}
    if any(tensor is None for tensor in given.values()):
        return f"{slot.name} is not stored as {' and '.join(parts)}"
    for part, (dtype, shape) in parts.items():
        tensor = stored.tensors[f"{key}.{part}"]
        same_kind = tensor.is_floating_point() if dtype.is_floating_point else tensor.dtype == dtype
        if not same_kind or tuple(tensor.shape) != shape:
            found = f"{tuple(tensor.shape)} of {tensor.dtype}".replace("torch.", "")
            wanted = f"{shape} of {dtype}".replace("torch.", "")
            return f"{slot.name}.{part} {found} in the file, {wanted} in the network"
    return None
