"""Carry out a plan: replace modules, and rewrite forwards where operations are removed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from binarize import nn as bnn
from binarize.errors import ModelError
from binarize.graph.code_paths import other_code_paths
from binarize.graph.decisions import LayerDecision, OperationDecision
from binarize.graph.forwards import new_activation, rewrite_forward
from binarize.graph.heads import resize_heads
from binarize.graph.layers import effective_weight
from binarize.graph.module_tree import ModuleTree, find_module
from binarize.graph.plan import Plan
from binarize.graph.scopes import ScopeGraph, trace_scope
from binarize.graph.units import build_int8, build_unit
from binarize.nn.base import BinaryLayer
from binarize.nn.input_range import InputRange
from binarize.nn.likeness import make_alike
from binarize.nn.spec import UnitSpec
from binarize.ops.bypass import GROUPINGS

__all__ = ["apply_plan"]


def apply_plan(
    model: nn.Module, plan: Plan, planned: Mapping[str, ScopeGraph] | None = None
) -> None:
    """Binarize a float network in place.

    Args:
        model: The float network.
        plan: A plan for a network of this structure.
        planned: Graphs of its forwards by path, where planning made them; they are edited.

    Raises:
        ModelError: The network is not the one that was planned for. It may then be partly changed:
            call this on a copy.
    """
    resize_heads(model, plan.heads)
    edits: dict[str, list[OperationDecision]] = defaultdict(list)
    for edit in plan.edits:
        edits[edit.scope].append(edit)
    # Trace the float network, before any module changes.
    graphs = dict(planned or {})
    for scope in edits:
        if scope not in graphs or not graphs[scope].portable:
            module = find_module(model, scope)
            graphs[scope] = trace_scope(module, plan.arguments.get(scope))
    paths = {
        scope: other_code_paths(find_module(model, scope), graphs[scope], plan.arguments.get(scope))
        for scope in edits
    }
    for scope, decisions in edits.items():
        rewrite_forward(
            find_module(model, scope),
            graphs[scope],
            scope,
            decisions,
            plan.policy.unit,
            model,
            paths[scope],
        )
    tree = ModuleTree(model)
    for activation in plan.activations:
        if activation.action == "replace" and not activation.rewrite:
            # One instance may serve scopes of other widths too: replace only this scope's.
            new = new_activation(activation, plan.policy.unit, model)
            make_alike(new, find_module(model, activation.site))
            tree.replace(activation.site, new, within=activation.scope)
    for decision in plan.layers:
        if decision.action in _REWRITES:
            _REWRITES[decision.action](tree, decision, plan.unit(decision))
    object.__setattr__(model, "binarize_plan", plan)


# Layers


def _planned_layer(tree: ModuleTree, decision: LayerDecision) -> Any:
    """Return the float layer of a decision."""
    layer = find_module(tree.model, decision.site)
    if tuple(layer.weight.shape) != decision.shape:
        raise ModelError(
            "model",
            f"{decision.site}.weight of shape {tuple(layer.weight.shape)}",
            f"the plan says {decision.shape}",
            "give the network that the plan was made for",
        )
    return layer


def _latent(layer: Any) -> nn.Parameter:
    """Return the effective weight as a parameter: the layer's own if it has one."""
    weight = effective_weight(layer)
    if isinstance(weight, nn.Parameter):
        return weight
    sources = [p for name, p in layer.named_parameters() if name != "bias"]
    return nn.Parameter(weight, requires_grad=any(p.requires_grad for p in sources))


def _quantize(tree: ModuleTree, decision: LayerDecision, spec: UnitSpec) -> None:
    layer = _planned_layer(tree, decision)
    new = build_int8(layer)
    new.weight, new.bias = _latent(layer), layer.bias
    new.input_range = InputRange().to(layer.weight.device)
    new.site = decision.site
    make_alike(new, layer)
    new.train(layer.training)
    tree.replace(decision.site, new)


def _binarize(tree: ModuleTree, decision: LayerDecision, spec: UnitSpec) -> None:
    layer = _planned_layer(tree, decision)
    unit = build_unit(layer, spec, bypass=decision.carries)
    unit.weight = None
    unit.to_empty(device=layer.weight.device)
    for part in unit.children():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    unit.set_weight(_latent(layer))
    bias = None if layer.bias is None else layer.bias.detach()
    unit.has_bias = bias is not None
    unit.site = decision.site
    make_alike(unit, layer)
    if decision.norm is not None:
        _adopt(tree, unit, decision.norm, bias)
    elif bias is not None:
        with torch.no_grad():
            unit.norm.bias.copy_(bias)  # type: ignore[operator]
    norm_mode = unit.norm.training if decision.norm is not None else layer.training
    tree.replace(decision.site, unit)
    # A frozen norm stays frozen inside the binary layer.
    unit.norm.train(norm_mode)


def _adopt(tree: ModuleTree, unit: BinaryLayer, path: str, bias: torch.Tensor | None) -> None:
    norm = find_module(tree.model, path)
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
        # The binary layer has no bias, which shifts the norm's input by that much.
        mean: Any = unit.norm.running_mean
        mean.sub_(bias.to(mean.dtype))
    # A plain norm keeps its hooks inside the binary layer.
    tree.replace(path, follower, hooks=not plain)


def _bypass_projection(tree: ModuleTree, decision: LayerDecision, spec: UnitSpec) -> None:
    layer = find_module(tree.model, decision.site)
    new = bnn.ShortcutBypass(
        layer.out_channels,
        kernel_size=layer.kernel_size,
        stride=layer.stride,
        padding=(0,) * len(layer.kernel_size) if isinstance(layer.padding, str) else layer.padding,
        dilation=layer.dilation,
        grouping=spec.bypass if spec.bypass in GROUPINGS else "contiguous",
    )
    tree.replace(decision.site, new)
    if decision.norm is not None:
        norm = find_module(tree.model, decision.norm)
        tree.replace(decision.norm, getattr(norm, "act", None) or nn.Identity())


_REWRITES: dict[str, Callable[[ModuleTree, LayerDecision, UnitSpec], None]] = {
    "binarize": _binarize,
    "bypass": _bypass_projection,
    "int8": _quantize,
}
