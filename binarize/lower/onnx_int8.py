"""8-bit layers as QuantizeLinear and DequantizeLinear around a convolution.

Runtimes know this pattern (QDQ) and compute the convolution in integers, where its result is
rounded again by the next 8-bit layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from binarize.kernels.int8 import int8_layer
from binarize.lower.fuse_int8 import fold_int8
from binarize.lower.record import Recording

__all__ = ["write_int8_layers"]


def write_int8_layers(recording: Recording) -> None:
    """Exchange the calls of the 8-bit operator for what the exporter translates.

    Args:
        recording: An exported module's graph, rewritten in place.
    """
    fold_int8(recording)
    for node in recording.graph.find_nodes(op="call_function", target=int8_layer):
        node.target = _quantized_layer


def _quantized_layer(
    x: Tensor,
    x_scale: float,
    x_zero: int,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[Any],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
    output_padding: Sequence[int],
    activation: str,
    limits: Sequence[float],
    *codes: Any,
) -> Tensor:
    """``binarize::int8_layer`` with a floating-point result."""
    scale = torch.scalar_tensor(x_scale, dtype=torch.float32)
    zero = torch.scalar_tensor(x_zero, dtype=torch.uint8)
    rounded = _symbolic("QuantizeLinear", (x, scale, zero), x.shape, torch.uint8)
    values = _symbolic("DequantizeLinear", (rounded, scale, zero), x.shape, torch.float32)
    kernel = _weight(weight, gain, groups, transposed)
    spatial = weight.dim() - 2
    before, after = list(padding[::2]), list(padding[1::2])
    if transposed:
        run: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        y = run(values, kernel, bias, stride, before, output_padding, groups, dilation)
    else:
        run = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        if not all(a is b or a == b for a, b in zip(before, after, strict=True)):
            pairs = [p for pair in reversed(list(zip(before, after, strict=True))) for p in pair]
            values, before = F.pad(values, pairs), [0] * spatial
        y = run(values, kernel, bias, stride, before, dilation, groups)
    if activation == "relu":
        return y.relu()
    if activation == "hardtanh":
        return y.clamp(*limits)
    if activation == "hardswish":
        return F.hardswish(y)
    return F.silu(y) if activation == "swish" else y


def _weight(codes: Tensor, gain: Tensor, groups: int, transposed: bool) -> Tensor:
    # Scales of a transposed weight run along dimension 1, of one group only.
    if transposed and groups > 1:
        per_input = gain.view(groups, 1, -1).expand(-1, codes.shape[0] // groups, -1)
        column = per_input.reshape(codes.shape[0], -1, *(1,) * (codes.dim() - 2))
        return codes.float() * column
    zeros = torch.zeros(gain.shape[0], dtype=torch.int8)
    how = {"axis": int(transposed)}
    return _symbolic("DequantizeLinear", (codes, gain, zeros), codes.shape, torch.float32, how)


def _symbolic(
    name: str, inputs: Sequence[Tensor], shape: Any, dtype: torch.dtype, attributes: Any = None
) -> Tensor:
    made: Tensor = torch.onnx.ops.symbolic(
        name, tuple(inputs), attributes or {}, dtype=dtype, shape=tuple(shape), version=13
    )
    return made
