"""How tensors flow between the layers of a network, as a short list of nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from binarize.graph.recorder import Op
from binarize.graph.trace import Trace

__all__ = ["FlowNode", "flow"]


@dataclass(frozen=True)
class FlowNode:
    """A layer's call, or a point where tensors merge.

    Attributes:
        name: Dotted name of the layer; name of the function that merges tensors; ``"input"`` or
            ``"output"``.
        kind: ``"layer"``, ``"merge"``, ``"input"`` or ``"output"``.
        inputs: Positions of the nodes that it depends on, all before its own.
        shape: Shape of the result.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


def flow(trace: Trace, layer: Callable[[Op], str | None]) -> tuple[FlowNode, ...]:
    """Contract a run to its layers, its merges, its inputs and outputs.

    Args:
        trace: The run.
        layer: Returns the row name of an operation that calls a layer, ``None`` for others.
    """
    nodes: list[FlowNode] = []
    # Per operation, the nodes that its result comes from: one, or none for constants.
    origins: list[tuple[int, ...]] = []
    for op in trace.ops:
        sources = tuple(dict.fromkeys(node for i in op.inputs for node in origins[i]))
        name, kind = layer(op), "layer"
        if name is None and op.kind in ("input", "output"):
            name, kind = op.kind, op.kind
        elif name is None and len(sources) > 1:
            name, kind = op.name, "merge"
        if name is None:
            origins.append(sources)
            continue
        nodes.append(FlowNode(name, kind, sources, op.shape))
        origins.append((len(nodes) - 1,))
    return tuple(nodes)
