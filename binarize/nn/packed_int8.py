"""Packed 8-bit layers: codes in, integer sums, floating point out.

Shapes: those of the original layers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from binarize.errors import ModelError
from binarize.kernels.int8 import int8_layer
from binarize.nn.base import check_floating
from binarize.nn.conv import pre_pads
from binarize.nn.folding import layer_padding
from binarize.nn.input_range import affine
from binarize.nn.int8 import Int8Layer
from binarize.nn.likeness import WeightOfOld, make_alike
from binarize.nn.packed import fitted_output_padding
from binarize.nn.single import Single
from binarize.nn.treated import TreatedLayer

__all__ = ["PackedInt8", "PackedInt8Linear", "pack_int8"]


def pack_int8(layer: Int8Layer, codes: Tensor, scale: Tensor) -> nn.Module:
    """Pack an 8-bit layer.

    Args:
        layer: The layer; it stays unchanged. Its latent weight is not read and may have no values.
        codes: Codes of its weight, see :meth:`Int8Layer.packed_weight`.
        scale: Scales of its weight, from the same method.

    Raises:
        ModelError: The range of its input was never observed, or is not finite.
    """
    name = layer.site or type(layer).__name__
    if not layer.input_range.is_observed:
        raise ModelError(
            "model",
            name,
            "the range of this 8-bit layer's input was never observed",
            "train it, or call binarize.recalibrate(model, batches)",
        )
    limits = layer.input_range.limits.tolist()
    if not all(math.isfinite(limit) for limit in limits):
        raise ModelError(
            "model",
            name,
            f"the range of this 8-bit layer's input, {limits[0]:g} to {limits[1]:g}, is not finite",
            "call binarize.recalibrate(model, batches)",
        )
    cls: Any = PackedInt8Linear if isinstance(layer, nn.Linear) else PackedInt8
    twin = cls(layer, codes, scale)
    kind = next(c for c in type(layer).__mro__ if not issubclass(c, TreatedLayer))
    make_alike(twin, layer, kind)
    return twin.eval()


class PackedInt8(WeightOfOld, Single):
    """An 8-bit convolution, plain or transposed: one call of ``binarize::int8_layer``.

    Args:
        layer: The layer to pack; its input range was observed.
        codes: Codes of its weight.
        scale: Scales of its weight.

    Shapes: (N, C_in, *spatial) to (N, C_out, *spatial of the convolution's output).

    Attributes:
        kernel: The kernel function; an exporter may set it to an equivalent in plain torch.

    Raises:
        BinarizeError: The input is not floating point.
    """

    codes: Tensor
    gain: Tensor
    constant: Tensor | None
    kernel: Any = staticmethod(int8_layer)

    def __init__(self, layer: Any, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.remember(layer)
        spatial = max(codes.dim() - 2, 1)
        ones = (1,) * spatial
        self.transposed: bool = getattr(layer, "transposed", False)
        self.kernel_size = tuple(getattr(layer, "kernel_size", ones))
        self.stride = tuple(getattr(layer, "stride", ones))
        self.dilation = tuple(getattr(layer, "dilation", ones))
        self.output_padding = tuple(getattr(layer, "output_padding", (0,) * spatial))
        self.groups: int = getattr(layer, "groups", 1)
        self.padding_mode: str = getattr(layer, "padding_mode", "zeros")
        self.pads = layer_padding(layer, spatial)
        self.pre_padding = getattr(layer, "pre_padding", None)
        self._around = list(getattr(layer, "_reversed_padding_repeated_twice", ()))
        step, zero = affine(layer.input_range.limits)
        self.step, self.zero = float(step), int(zero)
        self.hold(
            codes=codes.reshape(*codes.shape[:2], *(codes.shape[2:] or ones)),
            gain=scale,
            constant=layer.bias,
        )

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Run the layer on feature maps (N, C_in, *spatial), or on one without N."""
        check_floating(input)
        if input.dim() == len(self.stride) + 1:
            return self(input.unsqueeze(0), output_size).squeeze(0)  # type: ignore[no-any-return]
        extra: Any = self.output_padding
        if output_size is not None:
            extra = fitted_output_padding(self, input, output_size, self.pads)
        return self._run(input, self._padded(input), extra)

    def _padded(self, input: Tensor) -> tuple[Tensor, list[int]]:
        """Return the input, padded if the kernel cannot pad, and the remaining padding."""
        if self.padding_mode != "zeros":
            first = F.pad(input, pre_pads(self, input.shape[2:])) if self.pre_padding else input
            if self.padding_mode == "circular":
                return _wrapped(first, self._around), [0] * len(self.pads)
            return F.pad(first, self._around, mode=self.padding_mode), [0] * len(self.pads)
        if self.pre_padding != "same":
            return input, list(self.pads)
        # SAME padding lists the last dimension first.
        pads, own = pre_pads(self, input.shape[2:]), list(self.pads)
        last = len(pads) - 2
        return input, [p + pads[last - i + i % 2 * 2] for i, p in enumerate(own)]

    def _run(self, input: Tensor, padded: tuple[Tensor, list[int]], extra: Any) -> Tensor:
        x, pads = padded
        y: Tensor = self.kernel(
            x.float(),
            self.step,
            self.zero,
            self.codes,
            self.gain,
            self.constant,
            self.stride,
            pads,
            self.dilation,
            self.groups,
            self.transposed,
            extra,
            "none",
            [],
            None,
            0,
        )
        return y.to(input.dtype)

    def extra_repr(self) -> str:
        return f"{self.gain.numel()}, kernel_size={self.kernel_size}, stride={self.stride}, bits=8"


class PackedInt8Linear(PackedInt8):
    """An 8-bit linear layer: a convolution with one tap on channels-last tensors.

    Args:
        layer: As for :class:`PackedInt8`.
        codes: As for :class:`PackedInt8`.
        scale: As for :class:`PackedInt8`.

    Shapes: (*positions, C_in) to (*positions, C_out).

    Raises:
        BinarizeError: The input is not floating point.
    """

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Run the layer on a tensor (*positions, C_in)."""
        check_floating(input)
        rows = input.reshape(1, -1, input.shape[-1]).transpose(1, 2)
        y = self._run(rows, (rows, [0, 0]), self.output_padding)
        return y.transpose(1, 2).reshape(*input.shape[:-1], self.gain.numel())


def _wrapped(x: Tensor, around: list[int]) -> Tensor:
    """Pad circularly; torch's own function writes in place, which programs cannot."""
    for i in range(0, len(around), 2):
        dim = x.dim() - 1 - i // 2
        before, after, length = *around[i : i + 2], x.shape[dim]
        ends = x.narrow(dim, length - before, before), x, x.narrow(dim, 0, after)
        x = torch.cat(ends, dim)
    return x
