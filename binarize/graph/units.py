"""Build the binary or 8-bit layer that replaces a float layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from binarize import nn as bnn
from binarize.graph.layers import extra_padding
from binarize.nn import int8
from binarize.nn.spec import UnitSpec

__all__ = ["build_int8", "build_unit", "has_bypass"]


def build_unit(layer: Any, spec: UnitSpec, *, bypass: bool = True) -> Any:
    """Build a binary layer with a float layer's geometry, on the meta device (without values).

    Args:
        layer: A convolution, transposed convolution or linear layer.
        spec: The unit's parts.
        bypass: False omits the bypass whatever ``spec`` says.
    """
    options: dict[str, Any] = {
        "unit": spec,
        "bypass": bypass,
        "device": "meta",
        "dtype": layer.weight.dtype,
    }
    if isinstance(layer, nn.Linear):
        return bnn.BiLinear(layer.in_features, layer.out_features, **options)
    return _convolution(layer, _BINARY, options)


def build_int8(layer: Any) -> Any:
    """Build an 8-bit layer with a float layer's geometry, on the meta device.

    Args:
        layer: A convolution, transposed convolution or linear layer.
    """
    options: dict[str, Any] = {
        "bias": layer.bias is not None,
        "device": "meta",
        "dtype": layer.weight.dtype,
    }
    if isinstance(layer, nn.Linear):
        return int8.Int8Linear(layer.in_features, layer.out_features, **options)
    return _convolution(layer, _INT8, options)


# For one, two and three dimensions; transposed or not.
_BINARY: dict[bool, tuple[Any, ...]] = {
    False: (bnn.BiConv1d, bnn.BiConv2d, bnn.BiConv3d),
    True: (bnn.BiConvTranspose1d, bnn.BiConvTranspose2d, bnn.BiConvTranspose3d),
}
_INT8: dict[bool, tuple[Any, ...]] = {
    False: (int8.Int8Conv1d, int8.Int8Conv2d, int8.Int8Conv3d),
    True: (int8.Int8ConvTranspose1d, int8.Int8ConvTranspose2d, int8.Int8ConvTranspose3d),
}


def _convolution(layer: Any, classes: dict[bool, tuple[Any, ...]], options: dict[str, Any]) -> Any:
    """Build one of the classes with the geometry of a float layer."""
    geometry = {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }
    if layer.transposed:
        geometry["output_padding"] = layer.output_padding
    else:
        geometry["padding_mode"] = layer.padding_mode
        options = {**options, "pre_padding": extra_padding(layer)}
    geometry = {key: _plain(value) for key, value in geometry.items()}
    cls = classes[bool(layer.transposed)][layer.weight.dim() - 3]
    return cls(
        layer.in_channels, layer.out_channels, tuple(layer.kernel_size), **geometry, **options
    )


def has_bypass(layer: Any, spec: UnitSpec) -> bool:
    """Check whether the binary layer has a bypass: some bypasses fit only some layers."""
    if spec.bypass is None:
        return False
    return spec.bypass != "identity" or build_unit(layer, spec).bypass is not None


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
