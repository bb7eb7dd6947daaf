"""Find layers that compute coordinates: offsets, masks and grids for sampling feature maps."""

from __future__ import annotations

from binarize.graph.recorder import Op
from binarize.graph.trace import Trace

__all__ = ["make_coordinates"]


def make_coordinates(trace: Trace) -> set[int]:
    """Find the layer calls that determine, with no layer in between, where maps are sampled.

    Args:
        trace: The run.

    Returns:
        Indices of the calls.
    """
    front = [index for op in trace.ops for index in _operands(op)]
    seen, found = set(front), set()
    while front:
        op = trace.ops[front.pop()]
        if op.kind in ("layer", "function-layer"):
            found.add(op.index)
        elif op.kind != "product" or len(op.inputs) == 1:
            new = set(op.inputs) - seen
            seen |= new
            front += new
    return found


def _operands(op: Op) -> tuple[int, ...]:
    """Return the operands of a sampling operation that are coordinates or sample weights."""
    if "deform_conv" in op.name:
        return op.inputs[1:]
    if op.name != "grid_sample":
        return ()
    # If it samples a table of the network's own (a parameter), only the grid is computed.
    return op.inputs[-1:] if len(op.inputs) > 1 or op.in_shape[-1] in (2, 3) else ()
