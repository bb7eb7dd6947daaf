"""Fuse 8-bit layers of a recorded graph with what follows, and pass codes to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from binarize.kernels.int8 import int8_layer
from binarize.lower.record import Recording
from binarize.lower.units import (
    arguments,
    is_call,
    result,
    set_arguments,
    units,
    value_of,
)

__all__ = ["fold_int8", "pass_codes"]

_aten = torch.ops.aten


def fold_int8(recording: Recording) -> list[fx.Node]:
    """Rewrite a graph in place.

    - Fold a BatchNorm after an 8-bit layer into its scales and constants.
    - Let the layer apply the activation that follows.

    Args:
        recording: The graph.

    Returns:
        The calls of the 8-bit layers.
    """
    nodes = [node for node in recording.graph.nodes if is_call(node, int8_layer)]
    for node in nodes:
        _fold_norm(recording, node)
        _take_activation(node)
    return nodes


def _only_user(node: fx.Node) -> Any:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _replace(node: fx.Node, user: fx.Node) -> None:
    """Replace the only reader of a layer's result by the layer."""
    user.replace_all_uses_with(node)
    user.graph.erase_node(user)


def _fold_norm(recording: Recording, node: fx.Node) -> None:
    r""":math:`g (s x + b - \mu) + \beta` is a layer with scale g s and constant g (b - μ) + β."""
    norm, known = _only_user(node), recording.constants
    if norm is None or not is_call(norm, *_NORMS):
        return
    x, *tensors, training, _, eps = _NORMS[norm.target](norm.args)
    if x is not node or training or any(t is not None and t.op != "get_attr" for t in tensors):
        return
    values: Any = [None if t is None else known[t.target].detach().double() for t in tensors]
    weight, shift, mean, var = values
    if mean is None or var is None:
        return
    given = arguments(node)
    gain: Any = torch.rsqrt(var + eps) * (1.0 if weight is None else weight)
    constant: Any = -mean if given["bias"] is None else known[given["bias"].target].double() - mean
    constant = constant * gain + (0.0 if shift is None else shift)
    with recording.graph.inserting_before(node):
        given["gain"] = recording.constant((known[given["gain"].target].double() * gain).float())
        given["bias"] = recording.constant(constant.float())
    set_arguments(node, given)
    if isinstance(norm.meta["value"], torch.Tensor):
        _replace(node, norm)
        return
    for part in list(norm.users):
        if part.args[1] == 0:
            _replace(node, part)
    recording.graph.erase_node(norm)


# Recorded and exported forms; their inputs: four tensors, training, momentum and epsilon.
_NORMS: dict[Any, Callable[[Any], Any]] = {
    _aten.native_batch_norm.default: lambda args: args,
    _aten.batch_norm.default: lambda args: args[:8],
    _aten._native_batch_norm_legit_no_training.default: lambda a: (*a[:5], False, *a[5:]),
}
_PLAIN = {
    _aten.relu.default: "relu",
    _aten.hardswish.default: "hardswish",
    _aten.silu.default: "swish",
}


def _take_activation(node: fx.Node) -> None:
    user = _only_user(node)
    if user is None or user.op != "call_function" or user.args[0] is not node:
        return
    given = arguments(node)
    if user.target in _PLAIN:
        given["activation"] = _PLAIN[user.target]
    elif is_call(user, _aten.hardtanh.default, _aten.clamp.default):
        limits = _limits(user)
        if limits is None:
            return
        given.update(activation="hardtanh", limits=limits)
    else:
        return
    if value_of(user).dtype != value_of(node).dtype:
        return
    set_arguments(node, given)
    _replace(node, user)


def _limits(user: Any) -> list[float] | None:
    """Return the minimum and maximum of a clipping operation; ``None`` unless it has both."""
    given = [*user.args[1:], *(user.kwargs.get(k) for k in ("min", "max") if k in user.kwargs)]
    if is_call(user, _aten.hardtanh.default):
        given += [-1.0, 1.0][len(given) :]
    if len(given) != 2 or not all(isinstance(x, int | float) for x in given):
        return None
    return [float(x) for x in given]


def pass_codes(recording: Recording) -> None:
    """Write feature maps as codes where 8-bit layers alone read them and round them alike.

    Args:
        recording: The graph, rewritten in place.
    """
    for node in recording.graph.nodes:
        if is_call(node, int8_layer):
            _write_codes(node, node)
    for node in units(recording.graph):
        _write_codes(node, result(node, 0))


def _write_codes(node: fx.Node, y: fx.Node) -> None:
    """Let a layer write the codes of its result ``y`` if that is all that is read."""
    wanted = set()
    for reader in y.users:
        if not is_call(reader, int8_layer) or reader.args[0] is not y:
            return
        given = arguments(reader)
        wanted.add((given["x_scale"], given["x_zero"]))
    value = value_of(y)
    if len(wanted) != 1 or value.dtype != torch.float32:
        return
    scale, zero = wanted.pop()
    given = arguments(node)
    given.update(y_scale=scale, y_zero=zero)
    set_arguments(node, given)
    codes = torch.empty_strided(value.shape, value.stride(), dtype=torch.uint8, device="meta")
    y.meta["value"] = codes
    if node is not y:
        node.meta["value"] = (codes, *node.meta["value"][1:])
