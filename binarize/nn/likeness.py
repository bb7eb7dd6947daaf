"""Make replacement modules pass the checks that the original modules passed.

Forwards check their layers: ``isinstance(layer, nn.ReLU)``, ``conv.weight.dtype``, ``conv.bias is
None``. The replacement of a layer answers as the layer itself would.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn

__all__ = ["WeightOfOld", "likeness", "make_alike", "mixed"]

_PLAIN = (bool, int, float, str, tuple, type(None))


def make_alike(new: nn.Module, old: nn.Module, kind: Any = None) -> None:
    """Make a module an instance of another's class too, with that module's plain attributes.

    The module's own methods and attributes take precedence and do not change.

    Args:
        new: The module.
        old: The module that it replaces.
        kind: The class to be an instance of, if not that of ``old``.
    """
    kind, cls = kind or likeness(type(old)), cast(Any, type(new))
    for name, value in vars(old).items():
        if isinstance(value, _PLAIN) and not name.startswith("_") and not hasattr(new, name):
            setattr(new, name, value)
    if not isinstance(new, kind):
        # Incompatible classes: the module keeps its class.
        new.__class__ = mixed(cls, kind) or cls


def likeness(cls: type) -> Any:
    """Return the original class of the network that a class made here derives from."""
    pair = cls.__dict__.get("_mixed_of")
    return cls if pair is None else pair[1]


@functools.cache
def mixed(first: Any, second: Any, name: str = "") -> Any:
    """Make a class of two, ``None`` if they are incompatible; its instances can be pickled.

    Args:
        first: The class whose methods take precedence.
        second: The other class.
        name: Name of the new class; by default that of ``first``.
    """

    def reduce(self: nn.Module, protocol: Any = None) -> Any:
        return _blank, (first, second, name), self.__dict__

    members = {
        "__reduce_ex__": reduce,
        "__module__": first.__module__,
        "__doc__": first.__doc__,
        "_mixed_of": (first, second),
    }
    try:
        return type(name or first.__name__, (first, second), members)
    except TypeError:
        return None


def _blank(first: type, second: type, name: str) -> Any:
    cls: Any = mixed(first, second, name)
    return cls.__new__(cls)


class WeightOfOld(nn.Module):
    """A layer that stores its weight in another form, and answers questions about the original.

    ``weight`` has the shape, dtype and device of the float layer's weight, and no values (NaN);
    ``bias`` likewise, or is ``None``.
    """

    old_shape: tuple[int, ...] = ()
    old_bias: int | None = None
    old_dtype = torch.float32

    def remember(self, layer: Any) -> None:
        """Record what a layer's weight and bias are."""
        self.old_shape = tuple(layer.weight.shape)
        self.old_dtype = layer.weight.dtype
        bias = getattr(layer, "bias", None)
        self.old_bias = None if bias is None else bias.numel()

    @property
    def weight(self) -> Any:
        """The placeholder for the weight."""
        return self._without_values(self.old_shape)

    @property
    def bias(self) -> Any:
        """The placeholder for the bias."""
        return None if self.old_bias is None else self._without_values((self.old_bias,))

    def _without_values(self, shape: tuple[int, ...]) -> Tensor:
        device = next((b.device for b in self.buffers()), torch.device("cpu"))
        return torch.full((), torch.nan, dtype=self.old_dtype, device=device).expand(shape)

    def parameters(self, recurse: bool = True) -> Any:
        """Yield the parameters; if there are none, an empty one, for its dtype and device."""
        own: list[Any] = list(super().parameters(recurse))
        yield from own or [self._without_values((0,))]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        self.old_dtype = fn(self.weight[:0]).dtype
        return result
