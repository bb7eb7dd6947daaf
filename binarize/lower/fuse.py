"""Rewrite a recorded graph so that feature maps are read and written as rarely as possible.

This does not change what is computed, only how often a float feature map passes through memory
and where float layers run. The graph has no side effects, so a pass may move any call to a later
position.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from binarize.kernels.activation import shifted_prelu
from binarize.kernels.ops import run_unit, unit
from binarize.lower.float_layers import place_last_convolutions, reuse_memory
from binarize.lower.fuse_int8 import fold_int8, pass_codes
from binarize.lower.record import Recording
from binarize.lower.symbolic_sizes import hint, integer_factor, is_symbolic, upsampled_source
from binarize.lower.units import (
    arguments,
    is_call,
    replace_call,
    result,
    set_arguments,
    units,
    value_of,
)

__all__ = ["fuse", "fuse_units"]

_aten = torch.ops.aten
_SAME = (_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default)
_NEAREST = (
    *(_aten.upsample_nearest1d.default, _aten.upsample_nearest2d.default),
    *(_aten.upsample_nearest3d.default, _aten._upsample_nearest_exact1d.default),
    *(_aten._upsample_nearest_exact2d.default, _aten._upsample_nearest_exact3d.default),
)


def fuse(recording: Recording) -> None:
    """Rewrite a graph in place.

    - 8-bit layers include what follows them, and read codes (:mod:`binarize.lower.fuse_int8`).
    - BatchNorms after kept convolutions overwrite their input, with unchanged rounding.
    - Binary layers include what follows them: additions of other feature maps, one activation.
    - Binary layers read the parts of a concatenation, and feature maps before nearest-neighbor
      upsampling, instead of the result.
    - The means for a binary layer's thresholds are computed while the feature map is written.
    - Operations that alone read a convolution's result overwrite it if they can.
    - Float layers after the last binary layer run where torch is fastest.
    """
    recording.graph.eliminate_dead_code()  # unused results would count as users
    _drop_identities(recording.graph)
    fold_int8(recording)
    _write_norms(recording)
    fuse_units(recording)
    pass_codes(recording)
    _overwrite(recording.graph)
    place_last_convolutions(recording.graph)
    if all(value.is_cpu for value in recording.constants.values()):
        reuse_memory(recording)
    for node in units(recording.graph):
        node.target = run_unit


def fuse_units(
    recording: Recording,
    upsampling_factor: Callable[[fx.Node], int | None] | None = None,
    makers: tuple[Any, ...] = (unit, shifted_prelu),
) -> None:
    """Fuse binary layers with what follows and precedes them.

    This is the engine-independent part of :func:`fuse`.

    Args:
        recording: The graph, rewritten in place.
        upsampling_factor: Returns the integer factor by which a node upsamples all sides of a
            feature map with nearest neighbor, or ``None`` if it does something else.
        makers: Operators that can return the means of what they write.
    """
    for node in units(recording.graph):
        _take_tail(recording, node)
    for node in units(recording.graph):
        _read_parts(node, upsampling_factor or _upsampling_factor)
    _pass_means(recording, makers)
    recording.graph.eliminate_dead_code()


def _drop_identities(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if is_call(node, *_SAME):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _write_norms(recording: Recording) -> None:
    r"""Apply BatchNorms after kept convolutions as one pass over the convolution's result.

    With :math:`g = \gamma / \sqrt{\sigma^2 + \epsilon}` a norm is
    :math:`y = g x + (\beta - g \mu)`. Folding g into the weights would save that pass, but it would
    round differently from the network, which may flip signs in later binary layers. Here, the norm
    itself computes both numbers, and `addcmul` rounds once, as the norm does.
    """
    graph, known = recording.graph, recording.constants
    for node in list(graph.nodes):
        if not is_call(node, _aten.native_batch_norm.default):
            continue
        conv, *given, training, momentum, eps = node.args
        if training or not is_call(conv, _aten.convolution.default) or len(conv.users) != 1:
            continue
        tensors = [t for t in given if t is not None]
        if any(t.op != "get_attr" for t in tensors):
            continue
        if any(value_of(t).dtype != torch.float32 for t in (conv, *tensors)):
            continue
        gain, shift, mean, var = (t and known[t.target].detach() for t in given)
        column = torch.zeros_like(var).view(1, -1, 1)
        none = column.flatten()
        rest = False, momentum, eps
        ones = _aten.native_batch_norm(column + 1, gain, None, none, var, *rest)[0]
        zeros = _aten.native_batch_norm(column, gain, shift, mean, var, *rest)[0]
        shape = (1, -1, *(1,) * (value_of(conv).dim() - 2))
        with graph.inserting_before(node):
            factor = recording.constant(ones.view(shape))
            offset = recording.constant(zeros.view(shape))
            normed = graph.call_function(_aten.addcmul.default, (offset, conv, factor))
        normed.meta["value"] = value_of(conv)
        for user in list(node.users):
            if user.args[1] == 0:
                user.replace_all_uses_with(normed)
            graph.erase_node(user)
        graph.erase_node(node)


# What follows a binary layer


def _take_tail(recording: Recording, node: fx.Node) -> None:
    while True:
        y = result(node, 0)
        if len(y.users) != 1:
            return
        (user,) = y.users
        given = arguments(node)
        # The activation is the kernel's last step.
        if given["act_slope"] is not None or not _join(recording, y, user, given):
            return
        node = replace_call(node, given, before=user)
        done = [result(user, 0), user] if is_call(user, shifted_prelu) else [user]
        done[0].replace_all_uses_with(result(node, 0))
        for each in done:
            recording.graph.erase_node(each)


def _join(recording: Recording, y: fx.Node, user: fx.Node, given: dict[str, Any]) -> bool:
    """Fuse a user of a binary layer's result into the layer, if possible; changes ``given``."""
    if is_call(user, _aten.add.Tensor) and user.kwargs.get("alpha", 1) == 1:
        others = [operand for operand in user.args if operand is not y]
        if len(others) != 1 or not isinstance(others[0], fx.Node):
            return False
        other, own = value_of(others[0]), value_of(y)
        if other.shape != own.shape or other.dtype != own.dtype:
            return False
        given["residuals"] = [*given["residuals"], others[0]]
        return True
    values: Any = user.args
    if is_call(user, shifted_prelu):
        _, shift, slope, out_shift, dim, want_means = values
        if dim % value_of(y).dim() != 1 or want_means:
            return False
        given.update(act_shift=shift, act_slope=slope, act_out_shift=out_shift)
        return True
    if is_call(user, _aten.relu.default, _aten.leaky_relu.default):
        slope = 0.0
        if user.target is _aten.leaky_relu.default:
            slope = float(values[1]) if len(values) > 1 else 0.01
        with user.graph.inserting_before(user):
            gain = recording.constants[given["gain"].target]
            given["act_slope"] = recording.constant(torch.full_like(gain, slope))
        return True
    return False


# What precedes a binary layer


def _read_parts(node: fx.Node, upsampling_factor: Callable[[fx.Node], int | None]) -> None:
    given = arguments(node)
    pairs = list(zip(given["sources"], given["upsample"], strict=True))
    todo, parts = pairs[::-1], []
    while todo:
        source, factor = todo.pop()
        if _joins_channels(source):
            todo += [(part, factor) for part in reversed(source.args[0])]
        elif grown := upsampling_factor(source):
            todo.append((source.args[0], factor * grown))
        elif factor == 1 and is_call(source, *_NEAREST) and is_symbolic(value_of(source)):
            parts.append(_decide_at_run_time(source, node))
        else:
            parts.append((source, factor))
    if parts != pairs:
        given["sources"] = [source for source, _ in parts]
        given["upsample"] = [factor for _, factor in parts]
        set_arguments(node, given)


def _joins_channels(node: Any) -> bool:
    if not is_call(node, _aten.cat.default) or len(node.args) < 2:
        return False
    return bool(node.args[1] % value_of(node).dim() == 1)


def _upsampling_factor(node: fx.Node) -> int | None:
    """Return the integer factor by which all sides grow, if there is one for all input sizes."""
    if not is_call(node, *_NEAREST):
        return None
    small, large = value_of(node.args[0]).shape[2:], value_of(node).shape[2:]  # type: ignore[arg-type]
    if is_symbolic(value_of(node)):
        factors = [hint(b) // max(1, hint(a)) for a, b in zip(small, large, strict=True)]
        triples = zip(small, large, factors, strict=True)
        if any(not statically_known_true(a * factor == b) for a, b, factor in triples):
            return None
        small, large = [1] * len(factors), factors  # type: ignore[assignment]
    return integer_factor(small, large, node.args[2:])


def _decide_at_run_time(source: fx.Node, reader: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Let a unit read a feature map before its upsampling where the sizes at run time allow it.

    Returns:
        Nodes of the feature map that the unit reads and of the factor by which it upsamples.
    """
    graph, (x, size, *scales) = source.graph, source.args
    exact = "exact" in str(source.target)
    with graph.inserting_before(reader):
        call = graph.call_function(upsampled_source, (x, None, size, scales, exact))
        read, factor = (graph.call_function(operator.getitem, (call, i)) for i in range(2))
    read.meta["value"] = value_of(x)  # type: ignore[arg-type]
    return read, factor


def _pass_means(recording: Recording, operators: tuple[Any, ...]) -> None:
    graph, empty = recording.graph, None
    for node in units(graph):
        given = arguments(node)
        origins = [_before_upsampling(source) for source in given["sources"]]
        makers = [_maker(origin, operators) for origin in origins]
        if given["mean_gain"] is None or not any(makers):
            continue
        given["means"] = []
        for maker, origin, source in zip(makers, origins, given["sources"], strict=True):
            if maker is not None:
                of_maker = arguments(maker)
                of_maker["want_means"] = True
                set_arguments(maker, of_maker)
                means = result(maker, 1)
                if origin is not source:
                    call = source.args[0]
                    call.args = (call.args[0], means, *call.args[2:])
                    with graph.inserting_before(node):
                        means = graph.call_function(operator.getitem, (call, 2))
                given["means"].append(means)
            else:
                with graph.inserting_before(node):
                    empty = empty or recording.constant(torch.empty(0))
                given["means"].append(empty)  # the kernel computes them itself
        set_arguments(node, given)


def _before_upsampling(source: fx.Node) -> Any:
    """Return the feature map before :func:`_decide_at_run_time`; other sources unchanged."""
    if is_call(source, operator.getitem) and is_call(source.args[0], upsampled_source):
        return source.args[0].args[0]  # type: ignore[union-attr]
    return source


def _overwrite(graph: fx.Graph) -> None:
    """Let sole readers of a convolution's result overwrite it: such a result is new memory."""
    for node in graph.nodes:
        operand = {_aten.relu.default: 0, _aten.addcmul.default: 1}.get(node.target)
        if node.op != "call_function" or operand is None:
            continue
        source: Any = node.args[operand]
        own = is_call(source, _aten.convolution.default, _aten.addcmul.out)
        if not own or len(source.users) != 1:
            continue
        if operand == 0:
            node.target = _aten.relu_.default
        elif value_of(source).shape == value_of(node).shape:
            node.target = _aten.addcmul.out
            node.kwargs = {**node.kwargs, "out": source}


def _maker(source: fx.Node, operators: tuple[Any, ...]) -> fx.Node | None:
    """Return the call that writes a feature map and can return its means."""
    if is_call(source, operator.getitem) and source.args[1] == 0:
        call: Any = source.args[0]
        if is_call(call, *operators) and (is_call(call, unit) or call.args[4] == 1):
            return call
    return None
