"""Export a packed network to ONNX with standard operators only."""

from __future__ import annotations

import copy
import importlib.util
import math
import os
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import FileError, ModelError
from binarize.graph.inputs import arguments
from binarize.kernels import reference
from binarize.kernels.activation import reference as activation_reference
from binarize.kernels.layout import Layout, unpack_weight
from binarize.lower.network import PackedNetwork
from binarize.lower.pack import pack
from binarize.nn.packed import PackedActivation, PackedUnit
from binarize.ops.bits import pack_signs

__all__ = ["export_onnx"]


def export_onnx(model: nn.Module, path: str | os.PathLike[str], example_inputs: Any) -> None:
    """Write a 1-bit network as an ONNX file that any runtime can run.

    Binary weights are stored as bits (uint8 tensors) and unpacked by standard operators, which
    runtimes do once, when they load the file; sums over signs are convolutions of floats there, so
    that the file is small but its execution as fast as a float network's. Sizes are those of the
    example inputs.

    Args:
        model: A packed network, or a 1-bit network in eval mode, of type float32; unchanged.
        path: The file, replaced if it is there.
        example_inputs: A tensor (N, C, *spatial), a tuple of positional arguments or a mapping of
            named ones.

    Raises:
        ModelError: A package is missing (``onnx`` or ``onnxscript``), the network cannot be packed,
            or cannot be exported.
        FileError: The folder of ``path`` is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            "path",
            str(path),
            f"writing ONNX needs the package {missing[0]}",
            "pip install onnx onnxscript",
        )
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise FileError(
            "path", str(path), f"there is no folder {folder!r}", "make the folder first"
        )
    packed = model if isinstance(model, PackedNetwork) else pack(model)
    args, kwargs = arguments(example_inputs)
    network = copy.deepcopy(packed.network)
    for module in network.modules():
        if isinstance(module, PackedUnit):
            _make_plain(module)
        elif isinstance(module, PackedActivation):
            module.kernel = activation_reference
    try:
        # The optimizer would unpack the bits for good.
        onnx = torch.onnx.export(
            network, args, kwargs=kwargs, dynamo=True, optimize=False, verbose=False
        )
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        raise ModelError(
            "model",
            type(packed.network).__name__,
            f"it cannot be exported ({type(error).__name__}: {text})",
            "torch.export.export(model, inputs) tells more",
        ) from error
    assert onnx is not None
    for node in onnx.model.graph:
        node.metadata_props.clear()  # where in whose files each operator was called
    onnx.save(os.fspath(path))


def _make_plain(twin: Any) -> None:
    """Let a unit compute in plain torch, with its weight as bits in the order of the signs."""
    channels = twin.threshold.numel(), twin.gain.numel()
    geometry = twin.kernel_size, twin.stride, twin.dilation, twin.groups, twin.transposed
    signs = unpack_weight(
        twin.weight, Layout(*channels, *geometry), twin.kernel_size, twin.transposed
    )
    shape = tuple(signs.shape)
    twin.weight = pack_signs(signs)

    def kernel(sources: Any, upsample: Any, means: Any, bits: Tensor, *others: Any) -> Any:
        # By division, since not all exporters and runtimes shift bytes.
        powers = 2.0 ** torch.arange(8)
        halves = torch.floor(bits.to(torch.float32).unsqueeze(1) / powers) / 2
        values = (halves - torch.floor(halves)).flatten()[: math.prod(shape)] * 4 - 1
        return reference.unit(sources, upsample, means, values.view(shape), *others)

    twin.kernel = kernel
