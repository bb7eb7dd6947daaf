"""Export a packed network to ONNX, with standard operators or those of ``binarize``."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import (
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_map_only,
)

from binarize.errors import FileError, ModelError
from binarize.graph.inputs import arguments
from binarize.kernels import reference
from binarize.kernels.activation import reference as activation_reference
from binarize.kernels.layout import VERSION, Layout, unpack_weight
from binarize.lower.network import PackedNetwork
from binarize.lower.onnx_int8 import cast_weights, write_int8_layers
from binarize.lower.onnx_operators import (
    DOMAIN,
    fused_module,
    merge_transpositions,
    rewritten_module,
)
from binarize.lower.pack import pack
from binarize.nn.packed import PackedActivation, PackedUnit, StoredWeight
from binarize.ops.bits import pack_signs
from binarize.runtime.structure import TENSOR
from binarize.writing import atomic_write

__all__ = ["export_onnx"]


RUNTIMES = ("standard", "binarize")


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Any,
    *,
    dynamic: bool | None = None,
    runtime: str = "standard",
    description: Mapping[str, Any] | None = None,
) -> None:
    """Write a 1-bit network to an ONNX file.

    With ``runtime="standard"``, the file uses only standard operators, and any runtime can run it.
    Binary weights are stored as bits (uint8 tensors), which standard operators unpack once, when a
    runtime loads the file; sums over signs are float convolutions, so the file is small but runs
    slower than a float network.

    With ``runtime="binarize"``, every binary layer, together with what follows it, is one operator
    of the domain ``binarize``, which runs on this package's kernels in ONNX Runtime:
    :class:`binarize.runtime.Session` loads such a file, and so does any other program that has
    registered the operator library (``binarize.runtime.library()``).

    Args:
        model: A packed network, or a 1-bit network in eval mode, in float32; it stays unchanged.
        path: The file to write; an existing file is replaced.
        example_inputs: A tensor (N, C, *spatial), a tuple of positional arguments or a mapping of
            keyword arguments.
        dynamic: Whether inputs of three or more dimensions may have any N and any spatial size
            (that the network accepts); otherwise all sizes are those of the examples. Defaults to
            True with ``runtime="binarize"``, and to False with ``"standard"``.
        runtime: ``"standard"`` or ``"binarize"``.
        description: Additional metadata for the file, see :func:`binarize.save`.

    The outputs are named by the keys if the network returns a mapping; a single tensor is named
    ``output``, several tensors ``output_0``, ``output_1``...

    Raises:
        ModelError: A package is missing (``onnx`` or ``onnxscript``), the runtime is unknown, or
            the network cannot be packed or exported (for all sizes, if requested).
        FileError: The folder of ``path`` is missing, or the file cannot be written.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            "path",
            str(path),
            f"writing ONNX needs the package {missing[0]}",
            "pip install onnx onnxscript",
        )
    if runtime not in RUNTIMES:
        raise ModelError("runtime", runtime, "is unknown", f"use one of {', '.join(RUNTIMES)}")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileError(
            "path", str(path), f"there is no folder {folder!r}", "create the folder first"
        )
    packed = model if isinstance(model, PackedNetwork) else pack(model)
    args, kwargs = arguments(example_inputs)
    if dynamic is None:
        dynamic = runtime == "binarize"
    shapes: Any = None
    if dynamic:
        # An exporter treats a size of 1 as a constant.
        args, kwargs = tree_map_only(Tensor, _several, (args, kwargs))
        shapes = tree_map(_names_of_sizes, _by_name(packed.network, args, kwargs))
    prepare = fused_module if runtime == "binarize" else _plain_module
    try:
        # A named size that turns out to be a constant would be exported as one.
        free = tree_map(lambda name: name and torch.export.Dim.DYNAMIC, shapes)
        network = prepare(packed.network, args, kwargs, free)
        program = torch.export.export(network, args, kwargs, dynamic_shapes=free)
        # The optimizer would unpack the bits permanently if it could.
        stored = any(isinstance(m, StoredWeight) for m in packed.network.modules())
        onnx = torch.onnx.export(
            program,
            dynamic_shapes=shapes,
            dynamo=True,
            optimize=runtime == "binarize" and not stored,
            verbose=False,
            custom_translation_table=_translations(),
            output_names=_output_names(packed.network, args, kwargs),
        )
    except ModelError:
        raise
    except Exception as error:
        # The first cause names the operator; what was raised later names the exporter.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        text = " ".join(str(cause).split())[:160]
        raise ModelError(
            "model",
            type(packed.network).__name__,
            f"it cannot be exported{' for all sizes' * dynamic} ({type(cause).__name__}: {text})",
            "set dynamic=False" if dynamic else "torch.export.export(model, inputs) shows more",
        ) from error
    assert onnx is not None
    for node in onnx.model.graph:
        node.metadata_props.clear()  # source locations of each operator call
        _name_type(node)
    if runtime == "binarize":
        merge_transpositions(onnx.model)
        cast_weights(onnx.model)
        onnx.model.opset_imports[DOMAIN] = 1
        # The file needs nothing newer, and ONNX Runtime 1.17 reads up to 9.
        onnx.model.ir_version = 9
    onnx.model.metadata_props.update(_metadata(packed, args, kwargs, description))
    try:
        with atomic_write(Path(path)) as temporary:
            onnx.save(os.fspath(temporary))
    except OSError as error:
        raise FileError(
            "path",
            str(path),
            f"it cannot be written ({error.strerror or error})",
            "check permissions and free disk space",
        ) from error


def _metadata(
    packed: PackedNetwork, args: Any, kwargs: Any, description: Mapping[str, Any] | None
) -> dict[str, str]:
    """Return the file's metadata; see :mod:`binarize.runtime`."""
    with torch.no_grad():
        output = packed.network(*args, **kwargs)
    count = iter(range(len(tree_leaves(output))))
    tensors = tree_map_only(Tensor, lambda _: {TENSOR: next(count)}, output)
    known = {
        "binarize_version": importlib.import_module("binarize").__version__,
        "binarize_layout": str(VERSION),
        "binarize_outputs": json.dumps(_as_json(tensors)),
    }
    if description is None:
        description = getattr(packed.network, "binarize_description", None)
    if description:
        known["binarize_network"] = json.dumps(dict(description))
    return known


def _as_json(value: Any) -> Any:
    """Convert a network's output for JSON: other containers become lists and mappings."""
    if isinstance(value, Mapping):
        return {str(key): _as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "__dict__"):
        return _as_json(vars(value))
    return str(value)


def _translations() -> dict[Any, Any]:
    """Return operators of layers with floating-point sums that the exporter does not know."""
    from onnxscript import opset18 as op

    def copysign(self: Any, other: Any) -> Any:
        size = op.Abs(self)
        zero = op.CastLike(op.Constant(value_float=0.0), other)  # type: ignore[type-var]
        return op.Where(op.Less(other, zero), op.Neg(size), size)

    def fmin(self: Any, other: Any) -> Any:
        return op.Where(op.IsNaN(self), other, op.Min(self, other))

    def shift_right(self: Any, other: Any) -> Any:
        return op.BitShift(self, other, direction="RIGHT")

    def sort(self: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        place: Any = op.Constant(value_ints=[dim])
        count: Any = op.Gather(op.Shape(self), place)
        # Among equal values, the lower index comes first.
        return op.TopK(self, count, axis=dim, largest=int(descending))

    def searchsorted(
        sorted_sequence: Any,
        self: Any,
        out_int32: bool = False,
        right: bool = False,
        side: str | None = None,
        sorter: Any = None,
    ) -> Any:
        passed = op.GreaterOrEqual if right or side == "right" else op.Greater
        last: Any = op.Constant(value_ints=[-1])
        before: Any = op.Constant(value_ints=[-2])
        values, limits = op.Unsqueeze(self, last), op.Unsqueeze(sorted_sequence, before)
        ones: Any = op.Cast(passed(values, limits), to=6 if out_int32 else 7)
        return op.ReduceSum(ones, last, keepdims=0)

    aten = torch.ops.aten
    return {
        aten.searchsorted.Tensor: searchsorted,
        aten.sort.stable: sort,
        aten.copysign.Tensor: copysign,
        aten.fmin.default: fmin,
        aten.__rshift__.Tensor: shift_right,
    }


def _plain_module(network: nn.Module, args: Any, kwargs: Any, shapes: Any) -> nn.Module:
    """Copy a network, with layers that compute in standard operators."""
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if isinstance(module, PackedUnit):
            _make_plain(module)
        elif isinstance(module, PackedActivation):
            module.kernel = activation_reference
    return rewritten_module(plain, args, kwargs, shapes, write_int8_layers)


def _name_type(node: Any) -> None:
    """Name a dtype rather than giving an example: runtimes warn that they cannot fold that."""
    if node.op_type != "CastLike":
        return
    from onnxscript import ir

    like = node.inputs[1]
    maker = like.producer()
    known = like.dtype
    if known is None and maker is not None and "value" in maker.attributes:
        known = maker.attributes["value"].value.dtype
    if known is None:
        return
    kind = int(known)
    node.op_type = "Cast"
    node.resize_inputs(1)
    node.attributes["to"] = ir.AttrInt64("to", kind)


def _output_names(network: nn.Module, args: Any, kwargs: Any) -> list[str]:
    with torch.no_grad():
        result = network(*args, **kwargs)
    paths = [path for path, value in tree_flatten_with_path(result)[0] if isinstance(value, Tensor)]
    if len(paths) == 1 and not paths[0]:
        return ["output"]
    names = ["_".join(str(getattr(k, "key", getattr(k, "idx", k))) for k in p) for p in paths]
    return [f"output_{name}" if name[:1].isdigit() else name for name in names]


def _by_name(network: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the inputs by the names that the forward gives them."""
    signature = inspect.signature(network.forward)
    named = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return named


def _several(x: Tensor) -> Tensor:
    return torch.cat([x, x]) if _is_map(x) and len(x) == 1 else x


def _names_of_sizes(value: Any) -> dict[int, str] | None:
    """Return the names of the free sizes, by dimension."""
    if not (isinstance(value, Tensor) and _is_map(value)):
        return None
    spatial = ("length",), ("height", "width"), ("depth", "height", "width")
    return {0: "batch", **dict(enumerate(spatial[value.dim() - 3], 2))}


def _is_map(x: Tensor) -> bool:
    """Check for the shape (N, C, *spatial)."""
    return 3 <= x.dim() <= 5


def _make_plain(twin: Any) -> None:
    """Make a packed layer compute in plain torch, with its weight as bits in order of the signs."""
    channels = twin.threshold.numel(), twin.gain.numel()
    geometry = twin.kernel_size, twin.stride, twin.dilation, twin.groups, twin.transposed
    signs = unpack_weight(
        twin.bits, Layout(*channels, *geometry), twin.kernel_size, twin.transposed
    )
    shape = tuple(signs.shape)
    twin.bits = pack_signs(signs)

    def kernel(sources: Any, upsample: Any, means: Any, bits: Tensor, *others: Any) -> Any:
        # By division, since not all exporters and runtimes can shift bytes.
        powers = 2.0 ** torch.arange(8)
        halves = torch.floor(bits.to(torch.float32).unsqueeze(1) / powers) / 2
        values = (halves - torch.floor(halves)).flatten()[: math.prod(shape)] * 4 - 1
        return reference.unit(sources, upsample, means, values.view(shape), *others)

    twin.kernel = kernel
