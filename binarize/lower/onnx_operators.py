"""Packed networks as ONNX graphs with binary layers as operators of the domain ``binarize``.

``BinaryConv`` is ``binarize::unit`` (:mod:`binarize.kernels.ops`) on channels-last feature maps.
``binarize/kernels/csrc/ort.cpp`` implements it for ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from binarize.errors import ModelError
from binarize.kernels.activation import shifted_prelu
from binarize.kernels.call import UnitCall
from binarize.kernels.layout import VERSION
from binarize.kernels.ops import unit
from binarize.lower.fuse import fuse_units
from binarize.lower.onnx_int8 import write_exact_int8_layers
from binarize.lower.record import Recording
from binarize.lower.units import arguments, is_call, value_of

__all__ = ["DOMAIN", "fused_module", "merge_transpositions", "rewritten_module"]

DOMAIN = "binarize"
_aten = torch.ops.aten


def fused_module(network: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any) -> fx.GraphModule:
    """Export a packed network, fusing its layers with what follows and precedes them.

    Args:
        network: The packed network's modules.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        dynamic_shapes: As :func:`torch.export.export` takes them.

    Returns:
        A module with the same signature.
    """
    return rewritten_module(network, args, kwargs, dynamic_shapes, _write_operators)


def _write_operators(recording: Recording) -> None:
    write_exact_int8_layers(recording)
    fuse_units(recording, _upsampling_factor, makers=(unit,))
    for node in recording.graph.find_nodes(op="call_function", target=unit):
        _need_constant_options(node)
        node.target = _binary_conv
    for node in recording.graph.find_nodes(op="call_function", target=shifted_prelu):
        node.target = _activation


def rewritten_module(
    network: nn.Module,
    args: Any,
    kwargs: Any,
    dynamic_shapes: Any,
    rewrite: Callable[[Recording], None],
) -> fx.GraphModule:
    """Export a network and rewrite its graph.

    Args:
        network: The network.
        args: Positional example inputs.
        kwargs: Keyword example inputs.
        dynamic_shapes: As :func:`torch.export.export` takes them.
        rewrite: Changes the graph in place.

    Returns:
        A module with the same signature.
    """
    program = torch.export.export(network, args, kwargs, dynamic_shapes=dynamic_shapes)
    # Decomposition by an empty table removes in-place changes from the graph.
    module: Any = program.run_decompositions({}).module()
    recording = _Exported(module)
    for node in list(module.graph.nodes):
        if _is_nothing(node):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
        elif is_call(node, _aten._assert_tensor_metadata.default):
            module.graph.erase_node(node)
        else:
            if is_call(node, _aten.view.default, _aten._unsafe_view.default):
                # A copy that made it visible may be among the removed nodes.
                node.target = _aten.reshape.default
            elif is_call(node, *_ADAPTIVE_MEANS) and _has_free_size(node.args[0]):
                # Exporters would write down the windows for the example's size.
                node.target = _adaptive_mean
            node.meta["value"] = node.meta.get("val")
    rewrite(recording)
    module.recompile()
    return module  # type: ignore[no-any-return]


class _Exported(Recording):
    """The graph of an exported module as a recording."""

    def __init__(self, module: fx.GraphModule) -> None:
        named = {node.target for node in module.graph.find_nodes(op="get_attr")}
        constants: dict[str, Any] = {}
        for name in named:
            *path, last = str(name).split(".")
            constants[str(name)] = getattr(module.get_submodule(".".join(path)), last)
        super().__init__(module.graph, constants)
        self.module = module

    def constant(self, value: Tensor) -> fx.Node:
        """Add a constant as in every recording, and also to the module."""
        self.module.register_buffer(f"constant_{len(self.constants)}", value)
        return super().constant(value)


_ADAPTIVE_MEANS = (
    *(getattr(_aten, f"adaptive_avg_pool{d}d").default for d in (1, 2, 3)),
    *(getattr(_aten, f"_adaptive_avg_pool{d}d").default for d in (2, 3)),
)


def _has_free_size(node: Any) -> bool:
    return not all(isinstance(length, int) for length in node.meta["val"].shape[2:])


def _adaptive_mean(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Run adaptive average pooling for all sizes of x: a matrix product along each dimension."""
    for dim, count in enumerate(sizes, x.dim() - len(sizes)):
        length = x.shape[dim]
        if statically_known_true(length == count):
            continue
        first = torch.arange(count)[:, None] * length // count
        end = (torch.arange(1, count + 1)[:, None] * length + count - 1) // count
        at = torch.arange(length)
        inside = ((at >= first) & (at < end)).to(x.dtype)
        shares = inside / inside.sum(1, keepdim=True)
        x = (x.movedim(dim, -1) @ shares.T).movedim(-1, dim)
    return x


def _is_nothing(node: fx.Node) -> bool:
    """Check whether a node returns its operand unchanged."""
    if is_call(node, _aten.detach.default, _aten.alias.default, _aten.lift_fresh_copy.default):
        return True
    if not is_call(node, _aten.to.dtype, _aten._to_copy.default, _aten.clone.default):
        return False
    source: Any = node.args[0]
    before, after = source.meta.get("val"), node.meta.get("val")
    return isinstance(before, Tensor) and before.dtype == after.dtype  # type: ignore[union-attr]


def _upsampling_factor(node: fx.Node) -> int | None:
    """Return the factor of a nearest-neighbor upsampling of all sides, for all sizes."""
    nearest = [getattr(_aten, f"upsample_nearest{d}d") for d in (1, 2, 3)]
    if not is_call(node, *(n.vec for n in nearest), *(n.default for n in nearest)):
        return None
    source: Any = node.args[0]
    small, large = value_of(source).shape[2:], value_of(node).shape[2:]
    scales: Any = node.args[2] if len(node.args) > 2 else None
    scales = [s for s in (scales if isinstance(scales, list | tuple) else node.args[2:]) if s]
    factors = {float(s) for s in scales}
    if not factors:
        hints = [(int(b), int(a)) for a, b in zip(small, large, strict=True)]
        factors = {b / a for b, a in hints}
    factor = factors.pop()
    known = all(
        statically_known_true(b == a * int(factor)) for a, b in zip(small, large, strict=True)
    )
    whole = factor == int(factor) >= 1
    return int(factor) if whole and known and not factors else None


def _need_constant_options(node: fx.Node) -> None:
    given = arguments(node)
    for name in ("output_padding", "bypass_offset"):
        if any(isinstance(value, fx.Node) for value in given[name]):
            raise ModelError(
                "dynamic",
                True,
                f"the {name} of a binary layer depends on the size of the image",
                "omit dynamic",
            )


# This package's operators, as the exporter translates them


def _binary_conv(*arguments: Any) -> Sequence[Tensor]:
    """Translate ``binarize::unit`` to a node of the ONNX graph, with transpositions around it."""
    call = UnitCall(*arguments)
    assert call.y_scale is None, "8-bit layers of ONNX files round what they read"
    activation = call.act_shift, call.act_slope, call.act_out_shift
    out = call.result_size()
    samples, channels = call.sources[0].shape[0], call.gain.shape[0]
    fixed = all(isinstance(value, int) for value in call.padding)
    pads = None
    if not fixed:
        pads = torch.stack([torch.scalar_tensor(v, dtype=torch.int64) for v in call.padding])
    results = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::BinaryConv",
        (
            *(call.weight, call.gain, call.offset, call.threshold),
            *(call.mean_gain, call.flip, call.exponent, *activation, pads),
            *(x.movedim(1, -1) for x in call.sources),
            *call.means,
            *(x.movedim(1, -1) for x in call.residuals),
        ),
        {
            "layout": VERSION,
            "dims": len(call.kernel),
            "sources": len(call.sources),
            "upsample": list(call.upsample),
            "has_means": int(len(call.means) > 0),
            "kernel": list(call.kernel),
            "stride": list(call.stride),
            "padding": list(call.padding) if fixed else [0] * len(call.padding),
            "dilation": list(call.dilation),
            "groups": call.groups,
            "padding_mode": call.padding_mode,
            "transposed": int(call.transposed),
            "output_padding": list(call.output_padding),
            "bypass": call.bypass,
            "bypass_offset": list(call.bypass_offset),
        },
        dtypes=(torch.float32,) * (1 + call.want_means),
        shapes=((samples, *out, channels), (samples, channels))[: 1 + call.want_means],
        version=1,
    )
    return results[0].movedim(-1, 1), *results[1:]


def _activation(
    x: Tensor,
    shift: Tensor | None,
    slope: Tensor,
    out_shift: Tensor | None,
    channel_dim: int,
    want_means: bool,
) -> Sequence[Tensor]:
    """Translate ``binarize::shifted_prelu``; no binary layer needs its means here."""
    y = x.movedim(channel_dim, 1) if channel_dim % x.dim() != 1 else x
    column = (-1, *(1,) * (y.dim() - 2))
    y = y if shift is None else y + shift.view(column)
    y = F.prelu(y, slope)
    y = y if out_shift is None else y + out_shift.view(column)
    return (y.movedim(1, channel_dim) if channel_dim % x.dim() != 1 else y,)


def merge_transpositions(model: Any) -> None:
    """Remove transpositions that cancel or repeat each other, in place.

    Args:
        model: An ``onnx_ir`` model.
    """
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    known: dict[tuple[Any, ...], Any] = {}
    for node in list(model.graph):
        if node.op_type != "Transpose":
            continue
        before = node.inputs[0].producer()
        order = tuple(node.attributes["perm"].as_ints())
        stand_in = known.setdefault((node.inputs[0], order), node.outputs[0])
        if before is not None and before.op_type == "Transpose":
            first = before.attributes["perm"].as_ints()
            if [first[i] for i in order] == list(range(len(order))):
                stand_in = before.inputs[0]
        if stand_in is not node.outputs[0]:
            node.outputs[0].replace_all_uses_with(stand_in, replace_graph_outputs=True)
    RemoveUnusedNodesPass()(model)
