"""The public function: pack a trained 1-bit network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from binarize.errors import ModelError
from binarize.graph.inputs import arguments
from binarize.graph.model_input import unwrap_model
from binarize.lower.network import PackedNetwork
from binarize.nn import ShiftedPReLU
from binarize.nn.packed import PackedActivation
from binarize.nn.treated import TreatedLayer
from binarize.nn.treatments import pack_treated

__all__ = ["finish", "pack"]


def pack(model: nn.Module, example_inputs: Any = None) -> PackedNetwork:
    """Turn a trained 1-bit network into one that runs on XNOR-popcount kernels.

    Packed layers store their weights as bits and fold norm and scales into two numbers per
    channel. They count bits if that gives the layer's result (:func:`binarize.report` shows it per
    layer); float layers stay with torch. Outputs agree with those of ``model`` in eval mode up to
    rounding.

    Args:
        model: A network with binary layers in eval mode; it stays unchanged.
        example_inputs: A tensor (N, C, *spatial), a tuple of positional arguments or a mapping of
            keyword arguments. The network runs on them once, so that the first call with inputs of
            their size is as fast as later ones. Optional.

    Returns:
        The packed network, on the device of ``model``. It is called like ``model``, can be copied,
        pickled, compiled and exported, but not trained.

    Raises:
        ModelError: The network has no binary layers, is already packed, is in training mode, has
            no values (meta device), or does not accept the example inputs.
    """
    model = unwrap_model(model)
    _check(model)
    twins: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, TreatedLayer):
            twins[id(module)] = pack_treated(module, *module.packed_weight())
    packed = finish(model, twins)
    if example_inputs is not None:
        args, kwargs = arguments(example_inputs)
        try:
            packed(*args, **kwargs)
        except Exception as error:
            text = " ".join(str(error).split())[:160]
            raise ModelError(
                "example_inputs",
                type(example_inputs).__name__,
                f"the network does not accept them ({type(error).__name__}: {text})",
                "give inputs that you would call the network with",
            ) from error
    return packed


def finish(model: nn.Module, twins: dict[int, Any]) -> PackedNetwork:
    """Copy a network with packed layers in place of its binary layers.

    Args:
        model: The network; it stays unchanged.
        twins: The packed layers, by ``id`` of the binary layer.
    """
    for module in model.modules():
        if isinstance(module, ShiftedPReLU):
            twins[id(module)] = PackedActivation(module)
    # deepcopy treats all objects in its memo as copied already: float weights must not be there.
    network = copy.deepcopy(model, twins)
    for parameter in network.parameters():
        if parameter.dim() in (4, 5):
            layout = torch.channels_last if parameter.dim() == 4 else torch.channels_last_3d
            parameter.data = parameter.data.contiguous(memory_format=layout)
    return PackedNetwork(network)


def _check(model: nn.Module) -> None:
    name = type(model).__name__
    if any(isinstance(module, PackedNetwork) for module in model.modules()):
        raise ModelError("model", name, "it is already packed", "use it as it is")
    if not any(isinstance(module, TreatedLayer) for module in model.modules()):
        raise ModelError(
            "model", name, "it has no binary layers", "convert it first: binarize.convert(model)"
        )
    training = next((path for path, m in model.named_modules() if m.training), None)
    if training is not None:
        raise ModelError(
            "model",
            training or name,
            "this module is in training mode, but packed networks are for inference",
            "call model.eval() first",
        )
    for path, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type == "meta":
            raise ModelError(
                "model", path, "a tensor on the meta device has no values", "load weights first"
            )
