"""Load a network from a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from binarize.errors import BinarizeError, FileError, ModelError
from binarize.file.fit import check_fit
from binarize.file.packed import fill_packed, network_without_values
from binarize.file.programs import holds_programs, load_programs
from binarize.file.slots import Slot, find_slots
from binarize.file.stored import Stored, read_stored
from binarize.file.tasks import BASE
from binarize.graph.model_input import deepcopy_model, unwrap_model
from binarize.graph.origin import build_origin
from binarize.graph.plan import Plan
from binarize.graph.rewrite import apply_plan
from binarize.lower.network import PackedNetwork
from binarize.lower.several import SeveralTasks
from binarize.nn.treated import TreatedLayer

__all__ = ["load"]


def load(
    path: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    packed: bool = False,
    task: str | Sequence[str] | None = None,
) -> nn.Module:
    """Load a network that :func:`binarize.save` wrote, with exactly the same outputs.

    Args:
        path: The file.
        model: The float network that was converted, with any weights; it stays unchanged, a copy
            is converted. Optional if the file says how to build it (``origin`` in its header).
        packed: Whether to load it for inference only: the result is what :func:`binarize.pack`
            returns for the 1-bit network, but without ever holding float copies of binary weights.
        task: Name of a task that was saved into the file, see :func:`binarize.add_task`; ``None``
            and "base" load the base. ``model`` is the base's float network, whatever the task.
            Several names: a network that returns a dict with each task's result; packed, layers
            whose inputs and weights are the same in several tasks run once for all of them.

    Returns:
        The 1-bit network in eval mode, on the device of ``model``, in the saved dtype. For the
        file of a packed network, its :class:`~binarize.lower.PackedPrograms`; ``model`` and
        ``packed`` are then ignored.

    Raises:
        FileError: The file is missing, damaged, not from binarize, or of a newer format, or it does
            not say how to build its network, or has no such task.
        ModelError: ``model`` is not the network that was converted, or is already converted.
    """
    task = None if task == BASE else task
    if holds_programs(path):
        if task is not None:
            raise FileError(
                "path",
                str(path),
                f"it holds a packed network, which has no task {task!r}",
                "load the file of the network that was packed",
            )
        return load_programs(path)
    if task is not None and not isinstance(task, str):
        return _several(path, model, packed, list(task))
    stored = read_stored(path, task)
    if model is not None:
        model = unwrap_model(model)
        _check_model(model)
    elif stored.plan.origin is None:
        raise FileError(
            "path",
            str(path),
            "the file does not say how to build its network",
            "give the float network: load(path, model=...)",
        )
    if packed:
        student = network_without_values(model, stored.plan.origin or {})
    else:
        student = (
            deepcopy_model(model) if model is not None else build_origin(stored.plan.origin or {})
        )
    if stored.description is not None:
        described: Any = student
        described.binarize_description = stored.description
    name = type(student).__name__
    try:
        _apply(stored.plan, student)
        if stored.dtype is not None:
            student.to(stored.dtype)  # also for tensors outside the file: non-persistent buffers
        slots = find_slots(student)
        check_fit(slots, stored, name)
    except ModelError as error:
        if model is not None:
            raise
        raise FileError(
            "path",
            str(path),
            f"the network built by its name differs ({error.rule})",
            "install the version of the library that it was saved with, or give model=...",
        ) from error
    if packed:
        device = next((p.device for p in model.parameters()), None) if model is not None else None
        return fill_packed(student, slots, stored, device or torch.device("cpu"))
    # Bits last: for some weight binarizers, buffers determine their meaning.
    for slot in sorted(slots, key=lambda slot: slot.layer is not None):
        _fill(slot, stored)
    return student.eval()


def _several(
    path: str | os.PathLike[str], model: nn.Module | None, packed: bool, names: list[str]
) -> nn.Module:
    if not names or len(set(names)) < len(names):
        raise BinarizeError(
            "task", names, "must be different names", "write task=['base', 'depth']"
        )
    networks = {name: load(path, model, packed=packed, task=name) for name in names}
    if not packed:
        return SeveralTasks(networks).eval()
    return PackedNetwork(SeveralTasks({n: cast(Any, p).network for n, p in networks.items()}))


def _check_model(model: nn.Module) -> None:
    if any(isinstance(module, TreatedLayer) for module in model.modules()):
        raise ModelError(
            "model",
            type(model).__name__,
            "it already has binary layers",
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
        # Another network can raise anything here.
        raise ModelError(
            "model",
            name,
            f"the file's plan does not fit it ({type(error).__name__}: {error})",
            "give the float network that was converted",
        ) from error


def _fill(slot: Slot, stored: Stored) -> None:
    key = stored.name_of(slot)
    parts = [stored.tensors[f"{key}.{part}"] for part in slot.parts]
    # In a half-precision network, scales have its dtype, except those of 8-bit layers.
    values = parts[-1] if slot.parts.get("bits") else parts[0] if parts else stored.tensors[key]
    kind = values.dtype if values.is_floating_point() or not parts else slot.tensor.dtype
    shape = tuple(slot.tensor.shape)
    device = slot.tensor.device
    if key in stored.strides:
        fresh = torch.empty_strided(shape, stored.strides[key], dtype=kind, device=device)
    else:
        fresh = torch.empty(shape, dtype=kind, device=device)
    if slot.layer is not None:
        slot.tensor.data = fresh
        slot.layer.load_packed_weight(*parts)
    else:
        slot.tensor.data = fresh.copy_(values)
