"""The slots of a network that a file fills: its parameters and buffers, each once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from binarize.errors import ModelError
from binarize.nn.treated import StoredParts, TreatedLayer

__all__ = ["Slot", "find_slots"]


@dataclass(frozen=True)
class Slot:
    """One parameter or buffer.

    Attributes:
        keys: Its keys in the state_dict; several if modules or tensors are shared.
        tensor: The parameter or buffer itself.
        layer: The layer whose latent weight it is, stored in fewer bits; ``None`` for tensors that
            are stored unchanged.
    """

    keys: tuple[str, ...]
    tensor: Tensor
    layer: TreatedLayer | None

    @property
    def name(self) -> str:
        """The first key."""
        return self.keys[0]

    @property
    def is_counter(self) -> bool:
        """Whether it is the batch counter of a norm; these are too many to list."""
        return (
            self.name.rpartition(".")[2] == "num_batches_tracked"
            and self.tensor.dtype == torch.int64
            and self.tensor.dim() == 0
        )

    @property
    def parts(self) -> StoredParts:
        """The stored parts of a latent weight, by name suffix; empty for other tensors."""
        return {} if self.layer is None else self.layer.stored_parts(self.tensor)


def find_slots(model: nn.Module) -> list[Slot]:
    """List the contents of a network's state_dict, in order.

    Args:
        model: Any network.

    Raises:
        ModelError: The state_dict holds something that is not a parameter or buffer.
    """
    owned = {id(x) for x in (*model.parameters(), *model.buffers())}
    keys: dict[int, list[str]] = defaultdict(list)
    tensors: dict[int, Tensor] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor) or id(value) not in owned:
            raise ModelError(
                "model",
                key,
                "this entry of the state_dict is neither a parameter nor a buffer",
                "keep such state outside the network, or register it as a buffer",
            )
        keys[id(value)].append(key)
        tensors[id(value)] = value
    packed = _packed(model)
    return [Slot(tuple(keys[i]), tensor, packed.get(i)) for i, tensor in tensors.items()]


def _packed(model: nn.Module) -> dict[int, TreatedLayer]:
    """Return the latent weights that are only used quantized, by ``id``."""
    users: dict[int, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_latent = isinstance(module, TreatedLayer) and name == "weight"
            users[id(parameter)].append(module if is_latent else model)
    packed = {}
    for identity, modules in users.items():
        first = modules[0]
        alike = {m.coding if isinstance(m, TreatedLayer) else None for m in modules}
        if isinstance(first, TreatedLayer) and len(alike) == 1:
            packed[identity] = first
    return packed
