"""Which layers make coordinates: offsets, masks and grids by which other maps are sampled."""

from __future__ import annotations

from binarize.graph.trace import Op, Trace

__all__ = ["make_coordinates"]


def make_coordinates(trace: Trace) -> set[int]:
    """Find the calls of layers whose values, with no layer between, say where a map is sampled.

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
    """The operands that are coordinates or weights of samples, of an operation that samples."""
    if "deform_conv" in op.name:
        return op.inputs[1:]
    if op.name != "grid_sample":
        return ()
    # Of a table of the network's own (a parameter) only the grid is computed.
    return op.inputs[-1:] if len(op.inputs) > 1 or op.in_shape[-1] in (2, 3) else ()
