"""Carry out a plan: exchange modules, rewrite the forwards that hold what has to go."""

from __future__ import annotations

import importlib
import linecache
import zlib
from collections import defaultdict
from types import ModuleType
from typing import Any

import torch
from torch import fx, nn

from binarize import nn as bnn
from binarize.errors import ModelError
from binarize.graph.layers import effective_weight, extra_padding
from binarize.graph.plan import Decision, Plan
from binarize.graph.scopes import ScopeGraph, trace_scope
from binarize.nn.activations import ACTIVATIONS
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
        _rewrite_scope(_module(model, scope), graphs[scope], scope, decisions, plan.policy.unit)
    for decision in plan.part("activation"):
        if decision.action == "replace" and not decision.rewrite:
            new = _activation(decision, plan.policy.unit)
            _exchange(model, decision.site, _to_like(new, model))
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


def _exchange(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put ``new`` at ``path``, and wherever else the same module is registered."""
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
        for owner in model.modules()
        for name, child in owner._modules.items()
        if child is old
    ]
    for owner, name in owners:
        owner._modules[name] = new
    new.train(old.training)


def _exchange_here(model: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    old = _module(model, path)
    _module(model, parent)._modules[name] = new
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
    _exchange(model, decision.site, unit)


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


def _activation(decision: Decision, spec: UnitSpec) -> nn.Module:
    new = ACTIVATIONS[spec.activation or ""](
        decision.channels, channel_dim=decision.channel_dim, **spec.activation_options
    )
    return new


def _to_like(new: nn.Module, model: nn.Module) -> nn.Module:
    """Move a new module to where a network's parameters are."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return new
    return new.to(device=parameter.device, dtype=parameter.dtype)


# Forwards


def _rewrite_scope(
    module: nn.Module,
    traced: ScopeGraph,
    scope: str,
    decisions: list[Decision],
    spec: UnitSpec,
) -> None:
    prefix = f"{scope}." if scope else ""
    graphs = [graph for graph in (traced.graph, traced.training) if graph is not None]
    called = {name for graph in graphs for name in _children(graph)}
    for decision in decisions:
        if decision.part == "activation":
            name = decision.site.removeprefix(prefix) if ":" not in decision.site else "activation"
        else:
            name = {"addition": "add", "scale": "mul"}[decision.part]
        node = traced.nodes.get((name, decision.ordinal))
        if node is None:
            raise ModelError(
                "model",
                type(module).__name__,
                f"its forward has no {name} number {decision.ordinal}, which the plan names",
                "give the network that the plan was made for",
            )
        twin = traced.twins.get(node)
        if decision.part == "activation":
            new_name = _free_name(module, f"prelu_{decision.ordinal}")
            child = _to_like(_activation(decision, spec), module)
            module.add_module(new_name, child.train(module.training))
            for each in (node, twin):
                if each is not None:
                    source = each.all_input_nodes[0]
                    with each.graph.inserting_before(each):
                        call = each.graph.create_node("call_module", new_name, (source,))
                    _replace(each, call)
        else:
            stand_in = _kept_operand(module, node, decision.operand)
            if twin is not None:
                # What only training does to the branch (a drop-path) goes with the shortcut: it
                # would drop the whole signal.
                _replace(
                    twin,
                    traced.twins.get(stand_in) or _kept_operand(module, twin, decision.operand),
                )
            _replace(node, stand_in)
    for name in called - {name for graph in graphs for name in _children(graph)}:
        module._modules[name] = None
    _set_forward(module, graphs)


def _children(graph: fx.Graph) -> set[str]:
    """Names of the direct children that a forward calls."""
    return {str(n.target).split(".")[0] for n in graph.nodes if n.op == "call_module"}


def _kept_operand(module: nn.Module, node: fx.Node, operand: int) -> fx.Node:
    """The operand of an addition that stays, counted as the trace does: without parameters."""
    tensors = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node)]
    kept = [tensor for tensor in tensors if tensor.op != "get_attr"][operand]
    while kept.op == "call_module":
        child = module.get_submodule(str(kept.target))
        if type(child).__name__ not in _DROP_PATHS:
            break
        kept = kept.all_input_nodes[0]
    return kept


_DROP_PATHS = ("DropPath", "StochasticDepth", "DropConnect")


def _replace(node: fx.Node, stand_in: fx.Node) -> None:
    node.replace_all_uses_with(stand_in)
    _erase(node)


def _erase(node: fx.Node) -> None:
    """Erase a node and what was computed for it alone (a projection, say)."""
    sources = node.all_input_nodes
    node.graph.erase_node(node)
    for source in sources:
        in_place = source.op == "call_method" and str(source.target).endswith("_")
        if not source.users and source.op not in ("placeholder", "output") and not in_place:
            _erase(source)


def _free_name(module: nn.Module, name: str) -> str:
    while hasattr(module, name):
        name += "_"
    return name


def _set_forward(module: nn.Module, graphs: list[fx.Graph]) -> None:
    codes = [graph.python_code("self") for graph in graphs]
    names = {name: value for code in codes for name, value in code.globals.items()}
    source = codes[0].src
    if len(codes) == 2:
        # One forward per mode, and one in front that chooses.
        source = source.replace("def forward(", "def _forward_eval(", 1) + codes[1].src.replace(
            "def forward(", "def _forward_train(", 1
        )
        source += """
def forward(self, *args, **kwargs):
    run = self._forward_train if self.training else self._forward_eval
    return run(*args, **kwargs)
"""
    base = type(module)
    module.__class__ = _subclass(base, source, names)


def _subclass(base: type, source: str, names: dict[str, Any]) -> type:
    """A subclass of a module's class with another forward; instances pickle by their source."""
    filename = f"<binarize {base.__module__}.{base.__qualname__} {zlib.crc32(source.encode()):x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    names.pop("__builtins__", None)
    namespace: dict[str, Any] = dict(names)
    exec(compile(source, filename, "exec"), namespace)

    # Modules cannot be pickled or deep-copied; their names can.
    imports = {k: v.__name__ for k, v in names.items() if isinstance(v, ModuleType)}
    objects = {k: v for k, v in names.items() if k not in imports}

    def reduce(self: nn.Module, protocol: Any = None) -> Any:
        return _restore, (base, source, imports, objects), self.__dict__

    members = {
        **{name: f for name, f in namespace.items() if name.lstrip("_").startswith("forward")},
        "__reduce_ex__": reduce,
        "__module__": base.__module__,
        "__doc__": base.__doc__,
    }
    return type(f"Binarized{base.__name__}", (base,), members)


def _restore(
    base: type, source: str, imports: dict[str, str], objects: dict[str, Any]
) -> nn.Module:
    modules = {name: importlib.import_module(module) for name, module in imports.items()}
    cls: Any = _subclass(base, source, {**objects, **modules})
    return cls.__new__(cls)
