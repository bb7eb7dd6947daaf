"""Carry out a plan: exchange modules, and have forwards rewritten where something has to go."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from binarize import nn as bnn
from binarize.errors import ModelError
from binarize.graph.forwards import new_activation, rewrite_forward
from binarize.graph.layers import effective_weight, extra_padding
from binarize.graph.plan import Decision, Plan
from binarize.graph.scopes import trace_scope
from binarize.nn.base import BinaryLayer
from binarize.nn.spec import UnitSpec

__all__ = ["apply_plan"]


def apply_plan(model: nn.Module, plan: Plan) -> None:
    """Make a float network binary, in place.

    Args:
        model: The float network.
        plan: A plan for a network of this structure.

    Raises:
        ModelError: The network is not the one that was planned for. It may then be changed in
            part: call this on a copy.
    """
    edits: dict[str, list[Decision]] = defaultdict(list)
    for decision in plan.decisions:
        if decision.rewrite:
            edits[decision.scope].append(decision)
    # The graphs are taken from the float network, before any module changes.
    graphs = {
        scope: trace_scope(_module(model, scope), plan.arguments.get(scope)) for scope in edits
    }
    for scope, decisions in edits.items():
        rewrite_forward(_module(model, scope), graphs[scope], scope, decisions, plan.policy.unit)
    for decision in plan.part("activation"):
        if decision.action == "replace" and not decision.rewrite:
            # One instance may serve scopes of other widths too: only this scope's is exchanged.
            scope = _module(model, decision.scope)
            new = new_activation(decision, plan.policy.unit, model)
            _exchange(model, decision.site, new, scope)
    for decision in plan.layers:
        if decision.action == "binarize":
            _binarize(model, decision, plan.policy.unit)
        elif decision.action == "bypass":
            _bypass_projection(model, decision, plan.policy.unit)
    object.__setattr__(model, "binarize_plan", plan)


def _module(model: nn.Module, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ModelError(
            "model",
            type(model).__name__,
            f"it has no module {path!r}, which the plan names",
            "give the network that the plan was made for",
        ) from None


def _exchange(model: nn.Module, path: str, new: nn.Module, within: nn.Module | None = None) -> None:
    """Put ``new`` at ``path``, and wherever else the same module is registered (``within``)."""
    old = _module(model, path)
    if old is model:
        raise ModelError(
            "model",
            type(model).__name__,
            "the network is a single layer",
            "wrap it: torch.nn.Sequential(layer)",
        )
    owners = [
        (owner, name)
        for owner in (within or model).modules()
        for name, child in owner._modules.items()
        if child is old
    ]
    for owner, name in owners:
        owner._modules[name] = new
    new.train(old.training)


# Layers


def _binarize(model: nn.Module, decision: Decision, spec: UnitSpec) -> None:
    layer = _module(model, decision.site)
    if tuple(layer.weight.shape) != decision.shape:
        raise ModelError(
            "model",
            f"{decision.site}.weight of shape {tuple(layer.weight.shape)}",
            f"the plan says {decision.shape}",
            "give the network that the plan was made for",
        )
    unit = _unit(layer, decision, spec)
    weight = effective_weight(layer)
    if isinstance(weight, nn.Parameter):
        unit.weight = weight
    else:
        unit.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    bias = None if layer.bias is None else layer.bias.detach()
    if decision.norm is not None:
        _adopt(model, unit, decision.norm, bias)
    elif bias is not None:
        with torch.no_grad():
            unit.norm.bias.copy_(bias)  # type: ignore[operator]
    norm_mode = unit.norm.training if decision.norm is not None else layer.training
    _exchange(model, decision.site, unit)
    # A frozen norm stays frozen inside its unit.
    unit.norm.train(norm_mode)


def _unit(layer: Any, decision: Decision, spec: UnitSpec) -> BinaryLayer:
    options: dict[str, Any] = {
        "unit": spec,
        "bypass": decision.carries,
        # Built without storage: the float layer's own weight is put in its place.
        "device": "meta",
        "dtype": layer.weight.dtype,
    }
    if isinstance(layer, nn.Linear):
        unit: Any = bnn.BiLinear(layer.in_features, layer.out_features, **options)
    else:
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
        unit = cls[spatial - 1](
            layer.in_channels, layer.out_channels, tuple(layer.kernel_size), **geometry, **options
        )
    weight = unit.weight
    unit.weight = None
    unit.to_empty(device=layer.weight.device)
    for part in (unit.binarizer, unit.norm):
        part.reset_parameters()
    unit.weight = weight
    return unit


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _adopt(model: nn.Module, unit: BinaryLayer, path: str, bias: torch.Tensor | None) -> None:
    norm = _module(model, path)
    follower = getattr(norm, "act", None) or nn.Identity()
    plain = type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    if plain:
        unit.norm = norm
    else:
        own: Any = unit.norm
        fresh = type(own)(
            norm.num_features,
            norm.eps,
            norm.momentum,
            norm.affine,
            norm.track_running_stats,
            device=unit.weight.device,
            dtype=own.weight.dtype,
        )
        with torch.no_grad():
            for name, value in (
                *norm.named_parameters(recurse=False),
                *norm.named_buffers(recurse=False),
            ):
                target = getattr(fresh, name, None)
                if target is not None:
                    target.copy_(value)
        unit.norm = fresh
    unit.norm.train(norm.training)
    if bias is not None and unit.norm.running_mean is not None:
        # The unit has no bias: the norm sees its input shifted by that much.
        mean: Any = unit.norm.running_mean
        mean.sub_(bias.to(mean.dtype))
    _exchange(model, path, follower)


def _bypass_projection(model: nn.Module, decision: Decision, spec: UnitSpec) -> None:
    layer = _module(model, decision.site)
    new = bnn.ShortcutBypass(
        layer.out_channels,
        kernel_size=layer.kernel_size,
        stride=layer.stride,
        padding=(0,) * len(layer.kernel_size) if isinstance(layer.padding, str) else layer.padding,
        dilation=layer.dilation,
        grouping=spec.bypass or "contiguous",
    )
    _exchange(model, decision.site, new)
    if decision.norm is not None:
        norm = _module(model, decision.norm)
        _exchange(model, decision.norm, getattr(norm, "act", None) or nn.Identity())
