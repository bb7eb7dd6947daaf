"""The binary unit that stands in for a float layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from binarize import nn as bnn
from binarize.graph.layers import extra_padding
from binarize.nn.spec import UnitSpec

__all__ = ["build_unit", "has_bypass"]


def build_unit(layer: Any, spec: UnitSpec, *, bypass: bool = True) -> Any:
    """Build a unit of a float layer's geometry, on the meta device: without any values.

    Args:
        layer: A convolution, transposed convolution or linear layer.
        spec: The unit's parts.
        bypass: False leaves out the bypass whatever ``spec`` says.
    """
    options: dict[str, Any] = {
        "unit": spec,
        "bypass": bypass,
        "device": "meta",
        "dtype": layer.weight.dtype,
    }
    if isinstance(layer, nn.Linear):
        return bnn.BiLinear(layer.in_features, layer.out_features, **options)
    geometry = {
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
    }
    spatial = layer.weight.dim() - 2
    if layer.transposed:
        geometry["output_padding"] = layer.output_padding
        cls: tuple[Any, ...] = (
            bnn.BiConvTranspose1d,
            bnn.BiConvTranspose2d,
            bnn.BiConvTranspose3d,
        )
    else:
        geometry["padding_mode"] = layer.padding_mode
        options["pre_padding"] = extra_padding(layer)
        cls = (bnn.BiConv1d, bnn.BiConv2d, bnn.BiConv3d)
    geometry = {key: _plain(value) for key, value in geometry.items()}
    return cls[spatial - 1](
        layer.in_channels, layer.out_channels, tuple(layer.kernel_size), **geometry, **options
    )


def has_bypass(layer: Any, spec: UnitSpec) -> bool:
    """Whether the unit of a float layer has a bypass: some bypasses fit some layers only."""
    if spec.bypass is None:
        return False
    return spec.bypass != "identity" or build_unit(layer, spec).bypass is not None


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
