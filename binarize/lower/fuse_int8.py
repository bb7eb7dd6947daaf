"""Fuse 8-bit layers of a recorded graph with what follows, and pass codes between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from binarize.kernels.int8 import int8_layer
from binarize.lower.record import Recording
from binarize.lower.units import arguments, is_call, set_arguments, value_of

__all__ = ["fold_int8", "fuse_int8"]

_aten = torch.ops.aten


def fuse_int8(recording: Recording) -> None:
    """Rewrite a graph in place.

    - Apply :func:`fold_int8`.
    - Write a result as codes if all its readers are 8-bit layers that round it in the same way.

    Args:
        recording: The graph.
    """
    for node in fold_int8(recording):
        _hand_on_codes(node)


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
    for result in list(norm.users):
        if result.args[1] == 0:
            _replace(node, result)
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


def _hand_on_codes(node: fx.Node) -> None:
    readers = list(node.users)
    wanted = set()
    for reader in readers:
        if not is_call(reader, int8_layer) or reader.args[0] is not node:
            return
        given = arguments(reader)
        wanted.add((given["x_scale"], given["x_zero"]))
    if len(wanted) != 1 or value_of(node).dtype != torch.float32:
        return
    scale, zero = wanted.pop()
    given = arguments(node)
    given.update(y_scale=scale, y_zero=zero)
    set_arguments(node, given)
    value = value_of(node)
    node.meta["value"] = torch.empty_strided(
        value.shape, value.stride(), dtype=torch.uint8, device="meta"
    )
