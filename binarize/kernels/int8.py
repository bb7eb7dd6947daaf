r"""``binarize::int8_layer``: convolutions, transposed ones and linear layers on 8-bit codes.

.. math::
    y_o = f\Bigl( s_x g_o \sum_{c, k} (q_{c} - z_x) \, w_{ock} + b_o \Bigr)

with codes :math:`q = \operatorname{clip}(\operatorname{round}(x / s_x) + z_x, 0, 255)` of the input
(which may already be given as codes), codes w of the weight, factors g and constants b per output
channel, and an activation f. The result is floating point, or codes again. Sums are integers.

On the CPU, the C library computes depthwise convolutions, and oneDNN the others if this torch has
its quantized operators. Otherwise, and for transposed convolutions, plain torch does, with integers
stored as floating-point numbers.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.kernels import native
from binarize.kernels.codes import LARGEST, plain_codes
from binarize.kernels.geometry import output_size

__all__ = ["ACTIVATIONS", "int8_layer", "quantized", "reference"]

ACTIVATIONS = ("none", "relu", "hardtanh", "hardswish", "swish")
"""The activations that a layer can end with; ``hardtanh`` clips to two limits."""

_LIBRARY = torch.library.Library("binarize", "FRAGMENT")
_LIBRARY.define(
    "int8_layer(Tensor x, float x_scale, int x_zero, Tensor weight, Tensor gain, Tensor? bias,"
    " SymInt[] stride, SymInt[] padding, SymInt[] dilation, int groups, bool transposed,"
    " SymInt[] output_padding, str activation, float[] limits, float? y_scale, int y_zero)"
    " -> Tensor",
    tags=[torch.Tag.pt2_compliant_tag],
)


def quantized(x: Tensor, scale: float, zero: int) -> Tensor:
    """Return the codes (uint8) of a tensor, with its strides if it is dense; codes pass through."""
    if x.dtype == torch.uint8:
        return x
    kernels = native.int8_kernels() if x.is_cpu and x.dtype == torch.float32 else None
    if kernels is not None:
        return kernels.codes(x if _is_dense(x) else x.contiguous(), scale, zero)
    return plain_codes(x, scale, zero)


def _is_dense(x: Tensor) -> bool:
    last = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    return x.is_contiguous() or x.is_contiguous(memory_format=last)


def reference(
    x: Tensor,
    x_scale: float,
    x_zero: int,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
    output_padding: Sequence[int],
    activation: str,
    limits: Sequence[float],
    y_scale: float | None,
    y_zero: int,
) -> Tensor:
    """Run the layer in plain torch; arguments as for the operator.

    Args:
        x: (N, C_in, *spatial), floating point or codes (uint8).
        x_scale: Step of its codes.
        x_zero: Code of zero.
        weight: Codes (int8), in the shape of a convolution's weight.
        gain: (C_out), scales of the weight times the factors folded into them.
        bias: (C_out), or ``None``.
        stride: Per spatial dimension.
        padding: Before and after, first dimension first; cropped in transposed convolutions.
        dilation: Per spatial dimension.
        groups: Groups of channels.
        transposed: Whether it is a transposed convolution.
        output_padding: Of a transposed convolution.
        activation: One of ``ACTIVATIONS``.
        limits: For ``hardtanh``, minimum and maximum.
        y_scale: Step of the result's codes; ``None`` for a floating-point result.
        y_zero: Code of zero in it.
    """
    kind = torch.float32 if x.dtype == torch.uint8 else x.dtype
    if not x.numel():  # torch's convolutions reject inputs without positions
        how = stride, padding, dilation, transposed, output_padding
        size = output_size(x.shape[2:], weight.shape[2:], *how)
        kind = kind if y_scale is None else torch.uint8
        return x.new_zeros((x.shape[0], gain.shape[0], *size), dtype=kind)
    taps = math.prod(weight.shape[2:]) * weight.shape[0 if transposed else 1]
    # Sums of integers are exact while they fit the mantissa.
    exact = torch.float32 if taps * LARGEST * 128 < 2**24 else torch.float64
    values = quantized(x, x_scale, x_zero).to(exact) - x_zero
    spatial = weight.dim() - 2
    if transposed:
        run: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        cut = [padding[2 * d] for d in range(spatial)]
        extra = output_padding, groups, dilation
        sums = run(values, weight.to(exact), None, stride, cut, *extra)
    else:
        run = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        around = _around(padding)
        values = F.pad(values, around) if any(around) else values
        sums = run(values, weight.to(exact), None, stride, 0, dilation, groups)
    shape = (1, -1, *(1,) * spatial)
    y = sums.float() * (gain * x_scale).view(shape)
    y = y if bias is None else y + bias.view(shape)
    y = _activated(y, activation, limits)
    return y.to(kind) if y_scale is None else quantized(y, y_scale, y_zero)


def _around(padding: Sequence[int]) -> list[int]:
    """Return the padding in the order of torch.nn.functional.pad: last dimension first."""
    pairs = [padding[i : i + 2] for i in range(0, len(padding), 2)]
    return [side for pair in reversed(pairs) for side in pair]


def _activated(y: Tensor, activation: str, limits: Sequence[float]) -> Tensor:
    if activation == "relu":
        return y.relu()
    if activation == "hardtanh":
        return y.clamp(*limits)
    if activation == "hardswish":
        return F.hardswish(y)
    return F.silu(y) if activation == "swish" else y


def _depthwise(*arguments: Any) -> Tensor | None:
    """Run the layer with the kernels' depthwise convolution; ``None`` if it is not for them."""
    x, x_scale, x_zero, weight, gain, bias, stride, padding, dilation, groups = arguments[:10]
    transposed, _, activation, limits, y_scale, y_zero = arguments[10:]
    kernels = native.int8_kernels()
    if kernels is None or transposed or not x.numel() or not kernels.takes(weight, groups):
        return None
    size = output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation, False, ())
    clips = {"none": None, "relu": (0.0, math.inf), "hardtanh": limits}
    inside = activation in clips
    y = kernels.depthwise(
        x if x.dtype == torch.uint8 else x.float(),
        x_scale,
        x_zero,
        weight,
        gain,
        bias,
        stride,
        padding[::2],
        dilation,
        size,
        clips[activation] if inside else None,
        y_scale if inside else None,
        y_zero,
    )
    if not inside:
        y = _activated(y, activation, limits)
        return y if y_scale is None else quantized(y, y_scale, y_zero)
    return y if y_scale is not None or x.dtype == torch.uint8 else y.to(x.dtype)


def _native(*arguments: Any) -> Tensor:
    """Run the layer with the fastest kernel that takes it; otherwise as :func:`reference` does."""
    done = _depthwise(*arguments)
    if done is not None:
        return done
    x, x_scale, x_zero, weight, gain, bias, stride, padding, dilation, groups = arguments[:10]
    transposed, _, activation, limits, y_scale, y_zero = arguments[10:]
    spatial = weight.dim() - 2
    without = transposed or spatial > 2 or not x.numel() or native.int8_kernels() is None
    if without or not _has_fast_groups(weight, groups) or not _has_onednn():
        return reference(*arguments)
    kind = torch.float32 if x.dtype == torch.uint8 else x.dtype
    codes = quantized(x if x.dtype == torch.uint8 else x.float(), x_scale, x_zero)
    stride, dilation = list(stride), list(dilation)
    before, after = list(padding[::2]), list(padding[1::2])
    if before != after or min(before) < 0:
        codes, before = F.pad(codes, _around(padding), value=x_zero), [0] * spatial
    if spatial == 1:
        codes = codes.unsqueeze(-1)
        stride, dilation, before = [*stride, 1], [*dilation, 1], [*before, 0]
    codes = codes.contiguous(memory_format=torch.channels_last)
    ready = _ready(weight, x_scale, x_zero, stride, before, dilation, groups)
    scalars = list(limits) if activation == "hardtanh" else []
    y: Tensor = torch.ops.onednn.qconv2d_pointwise.default(
        codes,
        x_scale,
        x_zero,
        ready.weight,
        gain,
        ready.zeros,
        bias,
        stride,
        before,
        dilation,
        groups,
        1.0 if y_scale is None else y_scale,
        0 if y_scale is None else y_zero,
        torch.float32 if y_scale is None else torch.uint8,
        activation,
        scalars,
        "",
    )
    y = y.squeeze(-1) if spatial == 1 else y
    return y if y_scale is not None else y.to(kind)


def _has_fast_groups(weight: Tensor, groups: int) -> bool:
    """Check whether oneDNN has an optimized kernel for this many channels per group.

    Its reference kernel is slower than plain torch, and rounds differently.
    """
    out, within = weight.shape[0] // groups, weight.shape[1]
    return groups == 1 or out == within == 1 or not (out % 16 or within % 16)


class _Ready(NamedTuple):
    """A weight in oneDNN's order, which depends on how it is used."""

    source: weakref.ref[Tensor]
    version: int | None
    copy: Tensor | None
    how: tuple[Any, ...]
    weight: Tensor
    zeros: Tensor


_ENTRIES: dict[int, _Ready] = {}


def _ready(
    weight: Tensor,
    x_scale: float,
    x_zero: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> _Ready:
    # Inference tensors have no version counter, so compare them.
    version = None if weight.is_inference() else weight._version
    how = x_scale, x_zero, tuple(stride), tuple(padding), tuple(dilation), groups
    entry = _ENTRIES.get(id(weight))
    if (
        entry is not None
        and entry.source() is weight
        and entry.how == how
        and entry.version == version
        and (entry.copy is None or torch.equal(entry.copy, weight))
    ):
        return entry
    key = id(weight)
    plain = weight.unsqueeze(-1) if weight.dim() == 3 else weight
    ones = torch.ones(weight.shape[0])
    made = torch.ops.onednn.qconv_prepack(
        plain.contiguous(), ones, x_scale, x_zero, stride, padding, dilation, groups, None
    )
    zeros = torch.zeros(weight.shape[0], dtype=torch.int32)
    copy = weight.clone() if version is None else None
    source = weakref.ref(weight, lambda ref: _drop(key, ref))
    entry = _Ready(source, version, copy, how, made, zeros)
    _ENTRIES[key] = entry
    return entry


def _drop(key: int, ref: weakref.ref[Tensor]) -> None:
    entry = _ENTRIES.get(key)
    if entry is not None and entry.source is ref:
        del _ENTRIES[key]


@functools.cache
def _has_onednn() -> bool:
    """Check whether torch's quantized operators exist and compute correctly."""
    codes = torch.arange(64, dtype=torch.uint8).view(1, 4, 4, 4)
    weight = (torch.arange(72) % 127 - 63).to(torch.int8).view(2, 4, 3, 3)
    one = torch.ones(2)
    try:
        ops = torch.ops.onednn
        ready = ops.qconv_prepack(weight, one, 1.0, 3, [1, 1], [1, 1], [1, 1], 1, None)
        how: Any = None, [1, 1], [1, 1], [1, 1], 1, 1.0, 0, torch.float32, "none", [], ""
        given = codes.contiguous(memory_format=torch.channels_last)
        got = ops.qconv2d_pointwise.default(given, 1.0, 3, ready, one, one.int() * 0, *how)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    wanted = F.conv2d(codes.double() - 3, weight.double(), padding=1)
    return bool(torch.equal(got.double(), wanted))


@torch.library.register_fake("binarize::int8_layer", lib=_LIBRARY)
def _fake(
    x: Tensor,
    x_scale: float,
    x_zero: int,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor | None,
    stride: Sequence[Any],
    padding: Sequence[Any],
    dilation: Sequence[Any],
    groups: int,
    transposed: bool,
    output_padding: Sequence[Any],
    activation: str,
    limits: Sequence[float],
    y_scale: float | None,
    y_zero: int,
) -> Tensor:
    kernel = list(weight.shape[2:])
    sizes = list(x.shape[2:])
    out = output_size(sizes, kernel, stride, padding, dilation, transposed, output_padding)
    channels = gain.shape[0]
    strides = [channels]
    for length in reversed(out):
        strides.insert(0, strides[0] * length)
    kind = x.dtype if y_scale is None else torch.uint8
    kind = torch.float32 if y_scale is None and x.dtype == torch.uint8 else kind
    shape = (x.shape[0], channels, *out)
    return x.new_empty_strided(shape, (strides[0], 1, *strides[1:]), dtype=kind)


def _plain(*arguments: Any) -> Tensor:
    return _channels_last(reference(*arguments))


def _cpu(*arguments: Any) -> Tensor:
    return _channels_last(_native(*arguments))


def _channels_last(y: Tensor) -> Tensor:
    """Give a result the strides that the fake kernel promises, also for dimensions of length 1."""
    last = y.movedim(1, -1)
    y = last.contiguous().view(-1).view(last.shape)
    return y.permute(0, y.dim() - 1, *range(1, y.dim() - 1))


_LIBRARY.impl("int8_layer", _plain, "CompositeExplicitAutograd")
_LIBRARY.impl("int8_layer", _cpu, "CPU")

int8_layer = torch.ops.binarize.int8_layer.default
