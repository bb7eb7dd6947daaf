"""8-bit layers in ONNX's standard operators.

A convolution between DequantizeLinear and QuantizeLinear (QDQ) is a pattern that runtimes compute
in integers, if the next layer rounds its result to codes again.

Otherwise, ONNX Runtime would convolve in floating point and round products and sums. Convolving the
codes themselves as floating-point numbers takes the same time, but their sums are exact, so later
1-bit layers see the same signs as in the packed network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from binarize.kernels.codes import inverse_step
from binarize.kernels.ops import unit
from binarize.lower.fuse_int8 import fold_int8
from binarize.lower.record import Recording
from binarize.lower.units import arguments

__all__ = ["cast_weights", "write_exact_int8_layers", "write_int8_layers"]


def write_int8_layers(recording: Recording) -> None:
    """Replace all calls of the 8-bit operator by the QDQ pattern.

    Args:
        recording: An exported module's graph, rewritten in place.
    """
    for node in fold_int8(recording):
        _write(node, _codes, exact=False)


def write_exact_int8_layers(recording: Recording) -> None:
    """Like :func:`write_int8_layers`, but with exact sums.

    The pattern stays only where all readers of the result are 8-bit layers, which benefit from it,
    and no 1-bit layer comes later.

    Args:
        recording: An exported module's graph, rewritten in place.
    """
    nodes = fold_int8(recording)
    before_bits = _ancestors(recording.graph.find_nodes(op="call_function", target=unit))
    exact = {n for n in nodes if n in before_bits or not n.users.keys() <= set(nodes)}
    exact = {node for node in exact if _fits_single_precision(recording, node)}
    pattern = set(nodes) - exact
    for node in nodes:
        # The operator that belongs to a pattern must round its result.
        codes = _codes if node.args[0] in pattern else _same_codes
        _write(node, codes, exact=node in exact)


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return all nodes that the results of these depend on."""
    found: set[fx.Node] = set()
    waiting = list(nodes)
    while waiting:
        new = set(waiting.pop().all_input_nodes) - found
        found |= new
        waiting += new
    return found


def _write(node: fx.Node, codes: Any, exact: bool) -> None:
    with node.graph.inserting_before(node):
        made = node.graph.call_function(codes, node.args[:3])
    node.args = (made, *node.args[1:], exact)
    node.target = _layer


def _fits_single_precision(recording: Recording, node: fx.Node) -> bool:
    given = arguments(node)
    weight = recording.constants[given["weight"].target].int().abs()
    taps = weight.transpose(0, 1) if given["transposed"] else weight
    largest_code = max(given["x_zero"], 255 - given["x_zero"])
    return int(taps.flatten(1).sum(1).max()) * largest_code < 2**24


def _codes(x: Tensor, scale: float, zero: int) -> Tensor:
    return _quantize(x, torch.scalar_tensor(scale), zero)


def _same_codes(x: Tensor, scale: float, zero: int) -> Tensor:
    """Quantize by a product, like :func:`binarize.kernels.int8.quantized`; runtimes divide."""
    return _quantize(x * inverse_step(scale), torch.ones(()), zero)


def _quantize(x: Tensor, scale: Tensor, zero: int) -> Tensor:
    limit = torch.scalar_tensor(zero, dtype=torch.uint8)
    return _symbolic("QuantizeLinear", (x, scale, limit), x.shape, torch.uint8)


def _layer(
    codes: Tensor,
    x_scale: float,
    x_zero: int,
    weight: Tensor,
    gain: Tensor,
    bias: Tensor | None,
    *others: Any,
) -> Tensor:
    """Return a ``binarize::int8_layer`` with float result as the pattern, or bit-exact."""
    *geometry, activation, limits, _, _, exact = others
    *_, groups, transposed, _ = geometry
    if exact:
        integers = _dequantize(codes, torch.ones(()), x_zero)
        y = _scaled(_convolve(integers, _unscaled(weight), None, *geometry), gain * x_scale, bias)
    else:
        values = _dequantize(codes, torch.scalar_tensor(x_scale), x_zero)
        y = _convolve(values, _values(weight, gain, groups, transposed), bias, *geometry)
    return _activate(y, activation, limits)


def _scaled(sums: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    zeros, ones = torch.zeros_like(gain), torch.ones_like(gain)
    # Runtimes fold norms after a convolution into its weights, but not across a new dimension.
    inputs = sums.unsqueeze(-1), gain, zeros if bias is None else bias, zeros, ones
    shape, how = (*sums.shape, 1), {"epsilon": 0.0}
    return _symbolic("BatchNormalization", inputs, shape, torch.float32, how).squeeze(-1)


def _convolve(
    values: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[Any],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
    output_padding: Sequence[int],
) -> Tensor:
    spatial = kernel.dim() - 2
    before, after = list(padding[::2]), list(padding[1::2])
    if transposed:
        run: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        return run(values, kernel, bias, stride, before, output_padding, groups, dilation)  # type: ignore[no-any-return]
    run = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    if not all(a is b or a == b for a, b in zip(before, after, strict=True)):
        pairs = [p for pair in reversed(list(zip(before, after, strict=True))) for p in pair]
        values, before = F.pad(values, pairs), [0] * spatial
    return run(values, kernel, bias, stride, before, dilation, groups)  # type: ignore[no-any-return]


def _activate(y: Tensor, activation: str, limits: Sequence[float]) -> Tensor:
    if activation == "relu":
        return y.relu()
    if activation == "hardtanh":
        return y.clamp(*limits)
    if activation == "hardswish":
        return F.hardswish(y)
    return F.silu(y) if activation == "swish" else y


def _values(codes: Tensor, gain: Tensor, groups: int, transposed: bool) -> Tensor:
    # Scales of a transposed weight run along dimension 1, within one group.
    if transposed and groups > 1:
        per_input = gain.view(groups, 1, -1).expand(-1, codes.shape[0] // groups, -1)
        column = per_input.reshape(codes.shape[0], -1, *(1,) * (codes.dim() - 2))
        return codes.float() * column
    zeros = torch.zeros(gain.shape[0], dtype=torch.int8)
    how = {"axis": int(transposed)}
    return _symbolic("DequantizeLinear", (codes, gain, zeros), codes.shape, torch.float32, how)


def _unscaled(codes: Tensor) -> Tensor:
    # Exporters would store the floats that a cast makes of them; see `cast_weights`.
    inputs = codes, torch.ones(()), torch.zeros((), dtype=torch.int8)
    return _symbolic("DequantizeLinear", inputs, codes.shape, torch.float32)


def cast_weights(model: Any) -> None:
    """Let runtimes convert weight codes to floats once, when they load a file.

    They repeat quantization operations at each call, to detect the pattern.

    Args:
        model: An ``onnx_ir`` model, changed in place.
    """
    from onnx_ir import AttrInt64, DataType

    for node in model.graph:
        if node.op_type != "DequantizeLinear":
            continue
        codes, scale, *_ = node.inputs
        if codes.dtype == DataType.INT8 and not scale.shape:
            node.op_type = "Cast"
            node.resize_inputs(1)
            node.attributes["to"] = AttrInt64("to", int(DataType.FLOAT))


def _dequantize(codes: Tensor, scale: Tensor, zero: int) -> Tensor:
    limit = torch.scalar_tensor(zero, dtype=torch.uint8)
    return _symbolic("DequantizeLinear", (codes, scale, limit), codes.shape, torch.float32)


def _symbolic(
    name: str, inputs: Sequence[Tensor], shape: Any, dtype: torch.dtype, attributes: Any = None
) -> Tensor:
    made: Tensor = torch.onnx.ops.symbolic(
        name, tuple(inputs), attributes or {}, dtype=dtype, shape=tuple(shape), version=13
    )
    return made
