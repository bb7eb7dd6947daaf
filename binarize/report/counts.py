"""Multiply-accumulates of a recorded run.

Convolutions and linear layers count, as in BiDense (Section 4). In networks with attention, the
transformer's parts count as in the FLOPs table of a published multi-task supplement, with N
tokens of D features: a projection N·D·D, attention 4N·D·D + 2N·N·D (its four projections and two
products), LayerNorm one per value of its feature map. Patch merging is therefore a LayerNorm and a
projection. BatchNorm, activations, pooling and resizing count nothing. Unknown counts are
``None``.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from binarize.graph.decisions import LayerDecision
from binarize.graph.plan import Plan
from binarize.graph.recorder import Op
from binarize.graph.trace import Trace
from binarize.nn import BinaryLayer
from binarize.nn.parts import BINARIZERS, WEIGHTS
from binarize.nn.treated import TreatedLayer

__all__ = ["count", "has_attention", "kind_of", "layer_macs", "planned_ops"]

# Multiply-accumulate operations that the trace does not measure.
_UNMEASURED = frozenset(
    (
        *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell"),
        *("rnn_relu_cell", "bilinear", "conv_transpose3d", "conv_tbc", "addmm"),
        *("addbmm", "addmv", "mv", "dot", "vdot", "inner", "outer", "tensordot", "chain_matmul"),
        *("multi_dot", "kron", "multi_head_attention_forward", "cdist"),
    )
)


def has_attention(trace: Trace) -> bool:
    """Check whether the network multiplies two computed tensors."""
    return any(op.kind == "product" for op in trace.ops)


def count(trace: Trace, op: Op, *, attention: bool) -> int | None:
    """Return the multiply-accumulates of one operation, over the whole batch.

    Args:
        trace: The run.
        op: One of its operations.
        attention: Whether LayerNorms count, see :func:`has_attention`.

    Returns:
        The count; ``None`` if unknown.
    """
    if op.kind == "layer":
        return layer_macs(trace.model.get_submodule(op.path or ""), op.in_shape, op.shape)
    if op.kind == "product" and op.path is not None:
        module = trace.model.get_submodule(op.path)
        return _attention_macs(trace, op, module)
    if op.kind == "norm":
        is_layer_norm = op.name == "layer_norm" or (
            op.path is not None and isinstance(trace.model.get_submodule(op.path), nn.LayerNorm)
        )
        return math.prod(op.shape) if attention and is_layer_norm else 0
    if op.name in _UNMEASURED:
        return None
    return op.macs


def kind_of(module: nn.Module | None) -> str:
    """Return the kind of number that a module's weights and operations count as.

    Args:
        module: A module; ``None`` for a function.

    Returns:
        ``"float"``, ``"int8"`` or ``"binary"``.
    """
    if not isinstance(module, TreatedLayer):
        return "float"
    return "int8" if module.weight_bits == 8 else "binary"


def planned_ops(trace: Trace, plan: Plan) -> float | None:
    """Return the effective operations that a float network will have under a plan.

    They are those of :attr:`binarize.Report.ops` for the converted network, without converting it.

    Args:
        trace: A run of the float network.
        plan: Its plan.

    Returns:
        Float + 8-bit / 8 + binary / 64 operations; ``None`` if some are unknown.
    """
    attention, total = has_attention(trace), 0.0
    decisions = {id(trace.model.get_submodule(d.site)): d for d in plan.layers}
    for op in trace.ops:
        macs = count(trace, op, attention=attention)
        if macs is None:
            return None
        decision = None
        if op.kind == "layer":
            decision = decisions.get(id(trace.model.get_submodule(op.path or "")))
        total += macs * (1 if decision is None else _share(decision, plan))
    return total


def _share(decision: LayerDecision, plan: Plan) -> float:
    """Return what one multiply-accumulate of a layer counts."""
    if decision.action == "binarize":
        spec = plan.unit(decision)
        bits = BINARIZERS[spec.binarizer](1, **spec.binarizer_options).bits
        return int(bits * WEIGHTS[spec.weight](**spec.weight_options).bits) / 64
    return {"keep": 1, "int8": 1 / 8, "bypass": 0, "remove": 0}[decision.action]


def layer_macs(layer: Any, in_shape: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """Return the multiply-accumulates of one call of a convolution or linear layer.

    Args:
        layer: The layer; its ``weight`` counts. A binary layer's operations count once per pair
            of a weight bit and an activation bit.
        in_shape: Shape of the input, () if unknown.
        shape: Shape of the output.
    """
    weights = layer.weight.numel()
    if isinstance(layer, BinaryLayer):
        weights = layer.weights * layer.weight_bits * layer.activation_bits
    if isinstance(layer, nn.Linear):
        return math.prod(shape[:-1]) * weights
    spatial = layer.weight.dim() - 2
    # Each weight meets each position of the output, or of the input in a transposed convolution.
    over = in_shape if layer.transposed else shape
    if len(over) <= spatial:
        return None
    return math.prod(over[: -spatial - 1]) * math.prod(over[-spatial:]) * weights


def _attention_macs(trace: Trace, op: Op, module: Any) -> int | None:
    """Count a ``torch.nn.MultiheadAttention``, which does not call its projections as modules."""
    if not isinstance(module, nn.MultiheadAttention) or len(op.shape) != 3:
        return None
    shapes = [trace.ops[i].shape for i in op.inputs]
    if len(shapes) < 3 or any(len(shape) != 3 for shape in shapes[:3]):
        return None
    query, key, value = shapes[:3]
    batch, tokens, width = query if module.batch_first else (query[1], query[0], query[2])
    others = key[1] if module.batch_first else key[0]
    if module.bias_k is not None or module.add_zero_attn:
        return None
    projections = tokens * width * width * 2 + others * width * (key[2] + value[2])
    return batch * (projections + 2 * tokens * others * width)
