"""The arguments of ``binarize::unit``: one record, from which its schema is written."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, NamedTuple, get_type_hints

from torch import Tensor

from binarize.kernels.geometry import output_size

__all__ = ["UnitCall"]

# Annotated with their names in torch's schemas.
_Tensor = Annotated[Tensor, "Tensor"]
_Optional = Annotated[Tensor | None, "Tensor?"]
_Tensors = Annotated[Sequence[Tensor], "Tensor[]"]
_Ints = Annotated[Sequence[int], "int[]"]
# May depend on the size of the feature maps.
_Sizes = Annotated[Sequence[Any], "SymInt[]"]
_Int = Annotated[int, "int"]
_Bool = Annotated[bool, "bool"]
_Word = Annotated[str, "str"]
_Float = Annotated[float | None, "float?"]


class UnitCall(NamedTuple):
    """A call of ``binarize::unit``; :mod:`binarize.kernels.ops` has the equation.

    The order of the fields is that of the operator's arguments, so ``unit(*call)`` makes the call.
    C_in is the number of channels of all sources together.

    Attributes:
        sources: Feature maps x (N, C_i, *spatial), concatenated along the channels.
        upsample: Factor by which each source is repeated along every spatial dimension.
        means: Mean of each source per sample and channel (N, C_i), or an empty tensor where it is
            unknown; an empty list if none is known.
        weight: The packed weight, see :func:`binarize.kernels.pack_weight`.
        gain: g_o (C_out,).
        offset: d_o (C_out,).
        mean_gain: k_c (C_in,); ``None`` is zero.
        threshold: b_c (C_in,).
        flip: Channels (C_in,) whose sign is negated where the input is above the threshold.
        exponent: a (1,); ``None`` is zero.
        kernel: Size of the kernel.
        stride: Per spatial dimension.
        padding: Before and after each spatial dimension in turn.
        dilation: Per spatial dimension.
        groups: Number of groups.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        transposed: Whether the convolution is a transposed one.
        output_padding: Of a transposed convolution, per spatial dimension.
        bypass: Grouping of the channel-adaptive bypass, ``"contiguous"`` or ``"interleaved"``, or
            ``"none"``.
        bypass_offset: First position of the bypass's windows, per spatial dimension.
        residuals: Feature maps of the result's shape to add to it.
        act_shift: The activation's shift before its slope (C_out,); ``None`` is zero.
        act_slope: Its slope below zero (C_out,); ``None`` is one.
        act_out_shift: Its shift after the slope (C_out,); ``None`` is zero.
        want_means: Whether to return the result's means per sample and channel too.
        y_scale: Step of the result's 8-bit codes; ``None`` for float32.
        y_zero: Code of zero.
    """

    sources: _Tensors
    upsample: _Ints
    means: _Tensors
    weight: _Tensor
    gain: _Tensor
    offset: _Tensor
    mean_gain: _Optional
    threshold: _Tensor
    flip: _Optional
    exponent: _Optional
    kernel: _Ints
    stride: _Ints
    padding: _Sizes
    dilation: _Ints
    groups: _Int
    padding_mode: _Word
    transposed: _Bool
    output_padding: _Sizes
    bypass: _Word
    bypass_offset: _Sizes
    residuals: _Tensors
    act_shift: _Optional
    act_slope: _Optional
    act_out_shift: _Optional
    want_means: _Bool
    y_scale: _Float = None
    y_zero: _Int = 0

    def operations(self) -> int:
        """Return the number of multiply-accumulates of signs."""
        first = self.sources[0]
        size = [length * self.upsample[0] for length in first.shape[2:]]
        positions = prod(size if self.transposed else self.result_size())
        channels = sum(x.shape[1] for x in self.sources) // self.groups
        per_position = prod(self.kernel) * channels * self.gain.numel()
        return int(first.shape[0] * positions * per_position)

    def result_size(self) -> list[Any]:
        """Return the spatial size of the result."""
        size = [length * self.upsample[0] for length in self.sources[0].shape[2:]]
        window = self.kernel, self.stride, self.padding, self.dilation
        return output_size(size, *window, self.transposed, self.output_padding)

    @classmethod
    def schema(cls) -> str:
        """Return the operator's arguments and results as torch's schema language has them."""
        hints = get_type_hints(cls, include_extras=True)
        words = [f"{hints[name].__metadata__[0]} {name}" for name in cls._fields]
        given = {name: f"={value}" for name, value in cls._field_defaults.items()}
        words = [word + given.get(name, "") for word, name in zip(words, cls._fields, strict=True)]
        return f"({', '.join(words)}) -> (Tensor, Tensor)"
