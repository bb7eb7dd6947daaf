"""Whether a file fits a network, and what differs if it does not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from binarize.errors import ModelError
from binarize.file.slots import Slot
from binarize.file.stored import Stored

__all__ = ["check_fit"]


def check_fit(slots: Sequence[Slot], stored: Stored, name: str) -> None:
    """Compare the names, shapes and kinds of all tensors.

    Args:
        slots: Those of the network.
        stored: The file.
        name: Class of the network, for the message.

    Raises:
        ModelError: Something is missing, left over or of another shape; the first three of each.
    """
    missing, different, used = [], [], set()
    sizes: dict[tuple[str, torch.Size], tuple[int, int]] = {}
    for slot in slots:
        key = stored.name_of(slot)
        used |= {key} if slot.layer is None else {f"{key}.bits", f"{key}.scale"}
        if not stored.has(key):
            missing.append(slot.name)
        elif (difference := _difference(slot, key, stored, sizes)) is not None:
            different.append(difference)
            used |= {key, f"{key}.bits", f"{key}.scale"}
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
    slot: Slot, key: str, stored: Stored, sizes: dict[tuple[str, torch.Size], tuple[int, int]]
) -> str | None:
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
    alike = str(slot.layer.quantizer), slot.tensor.shape
    if alike not in sizes:
        sizes[alike] = slot.packed_sizes
    size, scales = sizes[alike]
    fits = bits.dtype == torch.uint8 and tuple(bits.shape) == (size,)
    if not fits or tuple(scale.shape) != (scales,) or not scale.is_floating_point():
        return (
            f"{slot.name} has {bits.numel()} bytes of bits and {scale.numel()} scales in the file, "
            f"{size} and {scales} in the network"
        )
    return None
