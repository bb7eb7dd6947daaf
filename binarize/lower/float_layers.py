"""Float layers of a recorded graph, which stay with torch's operators where those are fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from binarize.kernels import memory
from binarize.lower.record import Recording
from binarize.lower.symbolic_sizes import hint
from binarize.lower.units import is_call, units, value_of

__all__ = ["conv1x1", "place_last_convolutions", "reuse_memory"]

_aten = torch.ops.aten
# Pixels of a feature map: with fewer, reordering the weights for oneDNN costs more than it gains.
_PIXELS = 256
# Bytes: large enough that reordering the weights costs little in comparison, small enough to
# still be in the cache when the result is copied.
_BAND = 2**23


def place_last_convolutions(graph: fx.Graph) -> None:
    """Let oneDNN run the pointwise convolutions that no binary layer follows.

    With one thread, torch uses MKL's matrix product instead, which was slower for all measured
    feature maps of 256 pixels and more (``benchmarks/pointwise.py``); smaller ones stay. Another
    summation order rounds differently, and may flip a sign in a later binary layer; convolutions
    that a binary layer follows therefore stay unchanged.
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
            node.target, node.args = conv1x1, node.args[:3]


def _is_pointwise(node: fx.Node) -> bool:
    x, weight, _, stride, padding, _, transposed, _, groups = node.args
    values = [value_of(each) for each in (x, weight, node)]  # type: ignore[arg-type]
    plain = values[0].dim() == 4 and not transposed and groups == 1 and not any(padding)  # type: ignore[arg-type]
    return bool(
        plain
        and all(v == 1 for v in (*values[1].shape[2:], *stride))  # type: ignore[misc]
        and all(v.dtype == torch.float32 for v in values)
        and all(v.is_contiguous(memory_format=torch.channels_last) for v in values)
        and hint(values[0].numel() // values[0].shape[1]) >= _PIXELS
    )


def conv1x1(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    r"""Compute a 1x1 convolution: :math:`y_{nohw} = b_o + \sum_c w_{oc} x_{nchw}`.

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
    # oneDNN would allocate new memory for its result.
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


def reuse_memory(recording: Recording) -> None:
    """Make operators of torch with large results write into reused memory.

    Args:
        recording: A graph of operations on the CPU.
    """
    graph = recording.graph
    for node in list(graph.nodes):
        value = node.meta.get("value")
        if node.op != "call_function" or not isinstance(value, Tensor):
            continue
        out = _writing(node.target) if 4 * hint(value.numel()) >= memory.LARGE else None
        if out is None or "out" in node.kwargs or value.dtype != torch.float32:
            continue
        sizes = recording.numbers((list(value.shape), list(value.stride())))
        with graph.inserting_before(node):
            node.kwargs = {**node.kwargs, "out": graph.call_function(memory.empty, sizes)}
        node.target = out


def _writing(target: Any) -> Any:
    """Return the form of an operator that writes into a given tensor, if it has a native one."""
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return None
    given = [(a.name, str(a.type)) for a in target._schema.arguments]
    for each in target.overloadpacket.overloads():
        found = getattr(target.overloadpacket, each)
        read = [(a.name, str(a.type)) for a in found._schema.arguments if not a.is_out]
        outs = [a.name for a in found._schema.arguments if a.is_out]
        # Generated forms compute the result elsewhere and copy it.
        if outs == ["out"] and read == given and torch.Tag.generated not in found.tags:
            return found
    return None
