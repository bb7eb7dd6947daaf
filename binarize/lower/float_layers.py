"""Float layers of a recorded graph, which stay with torch's operators, where these run best."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from binarize.kernels import memory
from binarize.lower.record import Recording
from binarize.lower.sizes import example
from binarize.lower.units import is_call, units, value_of

__all__ = ["convolve_points", "give_memory", "place_last_convolutions"]

_aten = torch.ops.aten
# Of a map: fewer pixels do not pay for the order that oneDNN brings the weights into.
_PIXELS = 256
# Bytes: so many that bringing the weights into order is little beside them, and still in the cache
# when they are copied to their place.
_BAND = 2**23


def place_last_convolutions(graph: fx.Graph) -> None:
    """Let oneDNN do the pointwise convolutions that no unit comes after.

    With one thread torch multiplies matrices instead, by MKL, which was slower for all maps of 256
    pixels and more that were measured (``benchmarks/pointwise.py``); smaller ones stay. Another
    order of summation rounds otherwise, and what rounds otherwise may get another sign in a unit
    behind it; so convolutions that a unit comes after stay as they are.
    """
    read: set[fx.Node] = set()
    todo = list(units(graph))
    while todo:
        node = todo.pop()
        if node not in read:
            read.add(node)
            todo += node.all_input_nodes
    for node in graph.nodes:
        if node not in read and is_call(node, _aten.convolution.default) and _is_pointwise(node):
            node.target, node.args = convolve_points, node.args[:3]


def _is_pointwise(node: fx.Node) -> bool:
    x, weight, _, stride, padding, _, transposed, _, groups = node.args
    values = [value_of(each) for each in (x, weight, node)]  # type: ignore[arg-type]
    plain = values[0].dim() == 4 and not transposed and groups == 1 and not any(padding)  # type: ignore[arg-type]
    return bool(
        plain
        and all(v == 1 for v in (*values[1].shape[2:], *stride))  # type: ignore[misc]
        and all(v.dtype == torch.float32 for v in values)
        and all(v.is_contiguous(memory_format=torch.channels_last) for v in values)
        and example(values[0].numel() // values[0].shape[1]) >= _PIXELS
    )


def convolve_points(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    r"""A convolution with one tap: :math:`y_{nohw} = b_o + \sum_c w_{oc} x_{nchw}`.

    Args:
        x: (N, C_in, H, W), channels last, float32.
        weight: (C_out, C_in, 1, 1).
        bias: (C_out,), or ``None``.

    Returns:
        (N, C_out, H, W), channels last.
    """
    rest: Any = [0, 0], [1, 1], [1, 1]
    if not (x.is_cpu and torch.backends.mkldnn.is_available()):
        return _aten.convolution.default(
            x, weight, bias, rest[1], rest[0], rest[2], False, [0, 0], 1
        )
    convolve = _aten.mkldnn_convolution.default
    samples, _, height, width = x.shape
    outputs = weight.shape[0]
    pixel = 4 * outputs
    if samples * height * width * pixel < memory.LARGE:
        return convolve(x, weight, bias, *rest, 1)
    # oneDNN's result would be in memory that is fetched anew.
    y = memory.empty((samples, height, width, outputs), _steps(height, width, outputs))
    y = y.permute(0, 3, 1, 2)
    rows = max(1, _BAND // (width * pixel))
    for n in range(samples):
        for top in range(0, height, rows):
            band = x[n : n + 1, :, top : top + rows]
            y[n : n + 1, :, top : top + rows] = convolve(band, weight, bias, *rest, 1)
    return y


def _steps(height: int, width: int, channels: int) -> tuple[int, int, int, int]:
    return height * width * channels, width * channels, channels, 1


def give_memory(recording: Recording) -> None:
    """Have large results of torch's operators written into memory that is used again.

    Args:
        recording: Of operations on the CPU.
    """
    graph = recording.graph
    for node in list(graph.nodes):
        value = node.meta.get("value")
        if node.op != "call_function" or not isinstance(value, Tensor):
            continue
        out = _writing(node.target) if 4 * example(value.numel()) >= memory.LARGE else None
        if out is None or "out" in node.kwargs or value.dtype != torch.float32:
            continue
        sizes = recording.numbers((list(value.shape), list(value.stride())))
        with graph.inserting_before(node):
            node.kwargs = {**node.kwargs, "out": graph.call_function(memory.empty, sizes)}
        node.target = out


def _writing(target: Any) -> Any:
    """The form of an operator that writes into a given tensor, if it has one of its own."""
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return None
    given = [(a.name, str(a.type)) for a in target._schema.arguments]
    for each in target.overloadpacket.overloads():
        found = getattr(target.overloadpacket, each)
        read = [(a.name, str(a.type)) for a in found._schema.arguments if not a.is_out]
        outs = [a.name for a in found._schema.arguments if a.is_out]
        # The forms that were generated make the result elsewhere and copy it.
        if outs == ["out"] and read == given and torch.Tag.generated not in found.tags:
            return found
    return None
