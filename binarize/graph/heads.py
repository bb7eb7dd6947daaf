"""Give the output layers of a network another number of channels, for another task."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from binarize.errors import ModelError
from binarize.graph.decisions import LayerDecision
from binarize.graph.module_tree import ModuleTree, find_module
from binarize.graph.plan import Plan
from binarize.nn.int8 import Int8Layer

__all__ = ["plan_with_heads", "resize_heads"]

_FLOAT = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def resize_heads(model: nn.Module, heads: Mapping[str, int]) -> None:
    """Replace layers by ones with another number of output channels and new weights, in place.

    Args:
        model: A float network, or a converted one.
        heads: Number of output channels by name of the layer. Layers that have it already stay.

    Raises:
        ModelError: A layer is missing, or cannot have that many channels.
    """
    tree = ModuleTree(model)
    for site, channels in heads.items():
        layer: Any = find_module(model, site)
        if channels != getattr(layer, "out_channels", getattr(layer, "out_features", None)):
            tree.replace(site, _resized(site, layer, channels))


def _resized(site: str, layer: Any, channels: int) -> nn.Module:
    if type(layer) not in _FLOAT and not isinstance(layer, Int8Layer):
        raise ModelError(
            "head",
            site,
            f"a {type(layer).__name__} cannot get another number of channels",
            "name a float or 8-bit layer of torch's own convolutions or linear layers",
        )
    if isinstance(layer, _ConvNd) and layer.groups > 1:
        raise ModelError(
            "head",
            site,
            f"a convolution with {layer.groups} groups cannot get another number of channels",
            "name an output layer without groups",
        )
    options: dict[str, Any] = {
        "bias": layer.bias is not None,
        "device": layer.weight.device,
        "dtype": layer.weight.dtype,
    }
    cls: Any = type(layer)
    if isinstance(layer, nn.Linear):
        made = cls(layer.in_features, channels, **options)
    else:
        names = ["stride", "padding", "dilation", "groups", "padding_mode"]
        names += ["output_padding"] if isinstance(layer, _ConvTransposeNd) else []
        options |= {name: getattr(layer, name) for name in names}
        made = cls(layer.in_channels, channels, layer.kernel_size, **options)
    if isinstance(layer, Int8Layer):
        made.input_range = copy.deepcopy(layer.input_range)
        made.site = layer.site
    return made  # type: ignore[no-any-return]


def plan_with_heads(plan: Plan, heads: Mapping[str, int]) -> Plan:
    """Return the plan of a network after :func:`resize_heads`.

    Args:
        plan: The plan of the network before.
        heads: Number of output channels by name of the layer.
    """
    decisions = list(plan.decisions)
    for place, decision in enumerate(decisions):
        if isinstance(decision, LayerDecision) and decision.site in heads:
            shape = list(decision.shape)
            # Transposed convolutions have a group's output channels in dimension 1.
            shape["Transpose" in decision.kind] = heads[decision.site]
            decisions[place] = replace(decision, shape=tuple(shape))
    return replace(plan, decisions=tuple(decisions), heads={**plan.heads, **heads})
