"""Data flow: facts about a trace that rules and rewriting need.

Each function makes one pass over the operations, which are in order of execution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from binarize.graph.outputs import LAYER_KINDS, Outputs
from binarize.graph.recorder import Op
from binarize.graph.shortcuts import Shortcut
from binarize.graph.trace import Trace

__all__ = [
    "Layer",
    "all_layers",
    "fed_by",
    "find_layers",
    "foreign_convolutions",
    "leads_to",
    "only_prediction_follows",
]


@dataclass
class Layer:
    """A convolution or linear layer of the float network.

    Attributes:
        path: Dotted name.
        module: The layer.
        ops: Its calls in the trace; empty if the layer is never called.
        roles: Keys of ``binarize.policy.schema.ROLES``.
        kinds: Keys of ``binarize.policy.schema.KINDS``.
        guess: Why it is assumed to make an output, or not to, if that is a guess.
    """

    path: str
    module: Any
    ops: list[Op]
    roles: frozenset[str]
    kinds: frozenset[str]
    guess: str = ""


def find_layers(trace: Trace, shortcuts: Mapping[int, Shortcut]) -> dict[str, Layer]:
    """Find all convolutions and linear layers; those that run come first.

    Args:
        trace: The run.
        shortcuts: Additions that close a residual block, by index.

    Returns:
        Layers by path.
    """
    before = _any_before(trace)
    reads = _reads_input(trace)
    modules = dict(trace.model.named_modules())
    calls: dict[str, list[Op]] = {}
    for op in trace.ops:
        if op.kind == "layer" and op.path is not None:
            calls.setdefault(op.path, []).append(op)
    outputs = Outputs(trace, shortcuts, calls, before, reads)
    projections = {op.index for shortcut in shortcuts.values() for op in shortcut.projection}
    coordinates = _make_coordinates(trace)
    last_up = _last_upsampling(trace)
    layers = {}
    for path, ops in calls.items():
        module = modules.get(path) or trace.model.get_submodule(path)
        roles = set()
        if not any(reads[op.index] for op in ops):
            roles.add("constant")
        elif not any(before[op.index] for op in ops):
            roles.add("input")
        ending = outputs.judge(path, ops)
        if ending.makes_output:
            roles.add("prediction")
        if "constant" not in roles and all(_is_vector(op, module) for op in ops):
            roles.add("vector")
            if any(_is_gate(trace, op) for op in ops):
                roles.add("gate")
        elif isinstance(module, nn.Linear) and any(len(op.in_shape) < 4 for op in ops):
            roles.add("tokens")
        if any(_meets_product(trace, op) for op in ops):
            roles.add("attention")
        if any(op.index in projections for op in ops):
            roles.add("shortcut")
        if any(op.index in coordinates for op in ops):
            roles.add("coordinates")
        if ops[0].index > last_up >= 0:
            roles.add("finest")
        layers[path] = Layer(path, module, ops, frozenset(roles), _kinds(module), ending.guess)
    zero = {path for path, layer in layers.items() if _is_zero(layer.module)}
    # A network with only zeros is a placeholder for one whose weights are loaded later.
    for path in zero if len(zero) < len(layers) else ():
        layers[path].roles |= {"zero"}
    seen = {id(layer.module) for layer in layers.values()}
    for path, module in modules.items():
        if _kinds(module) and id(module) not in seen:
            layers[path] = Layer(path, module, [], frozenset({"unused"}), _kinds(module))
    return layers


def all_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return convolutions and linear layers by every name that they are registered under."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if _kinds(module)
    }


def foreign_convolutions(trace: Trace) -> dict[str, Any]:
    """Return modules that convolve but subclass none of torch's convolutions, by path."""
    return {
        path: module
        for path, module in trace.model.named_modules()
        if not _kinds(module)
        and isinstance(getattr(module, "weight", None), nn.Parameter)
        and all(hasattr(module, name) for name in ("in_channels", "out_channels", "kernel_size"))
    }


def _kinds(module: nn.Module) -> frozenset[str]:
    if isinstance(module, nn.Linear):
        return frozenset({"linear"})
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        kinds = {"transposed"}
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        kinds = {"conv"}
    else:
        return frozenset()
    if module.groups > 1:
        kinds.add("depthwise" if module.groups == module.in_channels else "grouped")
    if all(k == 1 for k in module.kernel_size):
        kinds.add("pointwise")
    if "conv" in kinds and any(s > 1 for s in module.stride):
        kinds.add("strided")
    return frozenset(kinds)


def _is_zero(module: nn.Module) -> bool:
    """Check whether a layer holds only zeros, so that it outputs only zeros."""
    parameters = list(module.parameters())
    if not parameters or any(p.is_meta or not p.numel() for p in parameters):
        return False
    # The first value almost always decides.
    return not any(bool(p.detach().flatten()[0]) or bool(p.detach().any()) for p in parameters)


def _last_upsampling(trace: Trace) -> int:
    """Return the index of the last upsampling that a layer follows, or -1."""
    after = _any_after(trace)
    found = -1
    for op in trace.ops:
        upsamples = op.kind == "up" or (op.kind == "layer" and "Transpose" in op.name)
        if upsamples and after[op.index]:
            found = op.index
    return found


def _is_vector(op: Op, module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return len(op.in_shape) <= 2 or all(length == 1 for length in op.in_shape[1:-1])
    return all(length == 1 for length in op.in_shape[2:])


def _is_gate(trace: Trace, op: Op) -> bool:
    """Check for a gate function ahead, with only a vector's layers and activations in between."""
    front, seen = [op.index], {op.index}
    while front:
        for consumer in trace.consumers[front.pop()]:
            follower = trace.ops[consumer]
            if follower.kind == "gate":
                return True
            small = all(length == 1 for length in follower.shape[2:])
            passing = follower.kind in ("layer", "activation", "norm", "shape")
            if passing and small and consumer not in seen:
                seen.add(consumer)
                front.append(consumer)
    return False


def _meets_product(trace: Trace, op: Op) -> bool:
    """Check for a product of feature maps ahead, with only reshaping, scaling, norms between."""
    for neighbours in (
        trace.consumers.__getitem__,
        lambda index: trace.ops[index].inputs,
    ):
        front, seen = [op.index], {op.index}
        while front:
            for index in neighbours(front.pop()):
                other = trace.ops[index]
                if other.kind == "product":
                    return True
                if other.kind in ("shape", "norm", "mul", "drop") and index not in seen:
                    seen.add(index)
                    front.append(index)
    return False


def _any_before(trace: Trace) -> list[bool]:
    found: list[bool] = []
    for op in trace.ops:
        found.append(any(found[i] or trace.ops[i].kind in LAYER_KINDS for i in op.inputs))
    return found


def _reads_input(trace: Trace) -> list[bool]:
    found: list[bool] = []
    for op in trace.ops:
        found.append(op.kind == "input" or any(found[i] for i in op.inputs))
    return found


def _any_after(trace: Trace) -> list[bool]:
    found = [False] * len(trace.ops)
    for op in reversed(trace.ops):
        found[op.index] = any(
            found[i] or trace.ops[i].kind in LAYER_KINDS for i in trace.consumers[op.index]
        )
    return found


def fed_by(trace: Trace, is_binary: Callable[[Op], bool]) -> list[int]:
    """Return, per operation, the channel dimension of the binary layer feeding it, 0 if none.

    Args:
        trace: The run.
        is_binary: Whether a layer's call becomes binary.
    """
    fed: list[int] = []
    for op in trace.ops:
        if op.kind == "layer":
            own = -1 if not _has_channels_second(op) else 1
            fed.append(own if is_binary(op) else 0)
            continue
        # The largest operand decides: when a linear layer's vector is broadcast over a feature map,
        # the channels are where the feature map has them.
        sources = [i for i in op.inputs if fed[i]]
        dim = fed[max(sources, key=lambda i: math.prod(trace.ops[i].shape))] if sources else 0
        if op.kind in ("function-layer", "product", "gate"):
            dim = 0
        elif dim and op.order:
            place, last = op.order.index(dim % len(op.order)), len(op.order) - 1
            # Inside a channel shuffle the dimension is elsewhere, and comes back.
            dim = {1: 1, last: -1}.get(place, dim)
        fed.append(dim)
    return fed


def leads_to(trace: Trace, is_binary: Callable[[Op], bool]) -> list[bool]:
    """Return, per operation, whether one of the next layers is binary.

    Args:
        trace: The run.
        is_binary: Whether a layer's call becomes binary.
    """
    found = [False] * len(trace.ops)
    for op in reversed(trace.ops):
        nexts = [trace.ops[i] for i in trace.consumers[op.index]]
        found[op.index] = any(
            is_binary(n) if n.kind == "layer" else n.kind not in LAYER_KINDS and found[n.index]
            for n in nexts
        )
    return found


def _has_channels_second(op: Op) -> bool:
    return "Linear" not in op.name


def only_prediction_follows(trace: Trace, is_prediction: Callable[[Op], bool]) -> list[bool]:
    """Return, per operation, whether the next layers on every path all make the prediction."""
    found = [False] * len(trace.ops)
    for op in reversed(trace.ops):
        nexts = [trace.ops[i] for i in trace.consumers[op.index]]
        found[op.index] = bool(nexts) and all(
            is_prediction(n) if n.kind == "layer" else found[n.index] for n in nexts
        )
    return found


def _make_coordinates(trace: Trace) -> set[int]:
    """Find the calls of layers that compute coordinates: offsets, masks, grids to sample maps.

    No layer lies between them and the sampling.
    """
    front = [index for op in trace.ops for index in _sampling_operands(op)]
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


def _sampling_operands(op: Op) -> tuple[int, ...]:
    """Return the operands of a sampling operation that are coordinates or sample weights."""
    if "deform_conv" in op.name:
        return op.inputs[1:]
    if op.name != "grid_sample":
        return ()
    # If it samples a table of the network's own (a parameter), only the grid is computed.
    return op.inputs[-1:] if len(op.inputs) > 1 or op.in_shape[-1] in (2, 3) else ()
