"""Load a file directly as a packed network: weights stay bits and are never floats."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from binarize.errors import ModelError
from binarize.file.slots import Slot
from binarize.file.stored import Stored
from binarize.graph.origin import build_origin
from binarize.lower.network import PackedNetwork
from binarize.lower.pack import finish
from binarize.nn.treated import TreatedLayer
from binarize.nn.treatments import pack_treated

__all__ = ["fill_packed", "network_without_values"]


def network_without_values(model: nn.Module | None, origin: Mapping[str, Any]) -> nn.Module:
    """Return a float network whose parameters and persistent buffers take no memory.

    Args:
        model: The network; it stays unchanged. ``None`` builds it from ``origin``.
        origin: How to build it by name, see :func:`binarize.graph.origin.find_origin`.
    """
    if model is None:
        try:
            with torch.device("meta"), _NoInitialValues():
                network = build_origin(origin)
            if not any(t.device.type == "meta" for t in _unsaved(network)):
                return network
        except Exception:
            # Some constructors compute with values, whose results are not in the file either.
            pass
        model = build_origin(origin)
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) in saved:
            empty = tensor.detach().to("meta")
            parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
    return copy.deepcopy(model, memo)


class _NoInitialValues(TorchFunctionMode):
    """Skip functions that fill tensors without values, which would take most of the time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FILLING and args and args[0].device.type == "meta":
            return args[0]
        return func(*args, **(kwargs or {}))


_FILLING = (Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_)


def _unsaved(network: nn.Module) -> Iterator[Tensor]:
    """Yield tensors that no state_dict holds: other buffers, plain attributes."""
    for module in network.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None:
                yield buffer
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def fill_packed(
    network: nn.Module, slots: Sequence[Slot], stored: Stored, device: torch.device
) -> PackedNetwork:
    """Load a file's tensors into a converted network without values, and pack it.

    Args:
        network: The network; it is consumed.
        slots: Its parameters and buffers.
        stored: The file, which must fit.
        device: The device of the packed network.
    """
    bits = {}
    for slot in slots:
        name = stored.name_of(slot)
        if slot.layer is None:
            _fill(network, slot, stored, name)
        else:
            bits[id(slot.tensor)] = [stored.tensors[f"{name}.{part}"] for part in slot.parts]
    network.eval()
    twins: dict[int, Any] = {}
    for module in network.modules():
        if isinstance(module, TreatedLayer):
            weight = bits.get(id(module.weight)) or module.packed_weight()
            twins[id(module)] = pack_treated(module, *weight)
    for tensor in (*network.parameters(), *network.buffers()):
        twins[id(tensor)] = tensor  # shared with the packed network
    packed = finish(network, twins)
    inner = packed.network  # its names are those of the user's network
    for name, tensor in (*inner.named_parameters(), *inner.named_buffers()):
        if tensor.device.type == "meta":
            raise ModelError(
                "model", name, "the file has no values for it", "give the network: model=..."
            )
    return packed.to(device)


def _fill(network: nn.Module, slot: Slot, stored: Stored, name: str) -> None:
    value = stored.tensors[name]
    new = nn.Parameter(value, False) if isinstance(slot.tensor, nn.Parameter) else value
    for key in slot.keys:
        path, _, attribute = key.rpartition(".")
        setattr(network.get_submodule(path), attribute, new)
