"""Rewrite the forward of a module to drop an addition or replace an activation."""

from __future__ import annotations

import importlib
import inspect
import linecache
import zlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from torch import fx, nn

from binarize.errors import ModelError
from binarize.graph.code_paths import CodePath
from binarize.graph.decisions import (
    ActivationDecision,
    AdditionDecision,
    OperationDecision,
)
from binarize.graph.scopes import ScopeGraph
from binarize.graph.switch import dispatching_forward
from binarize.nn.parts import ACTIVATIONS
from binarize.nn.spec import UnitSpec

__all__ = ["new_activation", "rewrite_forward"]


def new_activation(decision: ActivationDecision, spec: UnitSpec, *like: nn.Module) -> nn.Module:
    """Build the activation that a decision specifies.

    Args:
        decision: A decision about an activation, with its channels.
        spec: The unit's parts.
        like: Modules; the first one with parameters gives device and dtype.
    """
    new = ACTIVATIONS[spec.activation or ""](
        decision.channels, channel_dim=decision.channel_dim, **spec.activation_options
    )
    parameter = next((p for m in like for p in m.parameters() if p.is_floating_point()), None)
    if parameter is None:
        return new
    return new.to(device=parameter.device, dtype=parameter.dtype)


def rewrite_forward(
    module: nn.Module,
    traced: ScopeGraph,
    scope: str,
    decisions: list[OperationDecision],
    spec: UnitSpec,
    model: nn.Module,
    paths: Sequence[CodePath] = (),
) -> None:
    """Replace a module's forward by one without what its decisions drop, in place.

    The module's class becomes a subclass of its old class, so only the forward changes.

    Args:
        module: The module.
        traced: Its traced forward; edited here.
        scope: Its dotted name.
        decisions: Activations to replace, additions and scales to drop.
        spec: The unit's parts.
        model: The whole network; gives device and dtype to a module without parameters.
        paths: The forward for other arguments, edited in the same way; see
            :func:`binarize.graph.code_paths.other_code_paths`.

    Raises:
        ModelError: The forward lacks an operation that a decision names.
    """
    prefix = f"{scope}." if scope else ""
    scopes = [traced, *(w.traced for w in paths[1:] if w.traced is not None)]
    graphs = [g for each in scopes for g in (each.graph, each.training) if g is not None]
    called = {name for graph in graphs for name in _children(graph)}
    for decision in decisions:
        if isinstance(decision, ActivationDecision):
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
        places = [(traced, node)]
        places += [
            (path.traced, path.twins[node])
            for path in paths
            if path.traced is not None and node in path.twins
        ]
        new_name = ""
        operand = decision.operand if isinstance(decision, AdditionDecision) else 0
        if isinstance(decision, ActivationDecision):
            new_name = _free_name(module, f"prelu_{decision.ordinal}")
            child = new_activation(decision, spec, module, model)
            module.add_module(new_name, child.train(module.training))
        for each, place in places:
            _edit(module, place, each.twins, operand, new_name)
    for name in called - {name for graph in graphs for name in _children(graph)}:
        module._modules[name] = None
    if paths:
        _set_forward(module, *dispatching_forward(module, paths))
    else:
        _set_forward(module, *_forward_of_modes(traced))


def _edit(
    module: nn.Module, node: fx.Node, twins: dict[fx.Node, fx.Node], operand: int, new_name: str
) -> None:
    """Replace a node by a child module, or drop the node, in both modes."""
    twin = twins.get(node)
    if new_name:
        for each in (node, twin):
            if each is not None:
                source = each.all_input_nodes[0]
                with each.graph.inserting_before(each):
                    call = each.graph.create_node("call_module", new_name, (source,))
                _replace(each, call)
        return
    stand_in = _kept_operand(module, node, operand)
    if twin is not None:
        # What only training applies to the branch (a drop-path) goes with the shortcut: alone, it
        # would drop the whole signal.
        _replace(twin, twins.get(stand_in) or _kept_operand(module, twin, operand))
    _replace(node, stand_in)


def _children(graph: fx.Graph) -> set[str]:
    """Return the names of the direct children that a forward calls."""
    return {str(n.target).split(".")[0] for n in graph.nodes if n.op == "call_module"}


def _kept_operand(module: nn.Module, node: fx.Node, operand: int) -> fx.Node:
    """Return the operand of an addition that stays, counted as in the trace: without constants."""
    tensors = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node)]
    kept = [tensor for tensor in tensors if not _is_constant(tensor)][operand]
    while kept.op == "call_module":
        child = module.get_submodule(str(kept.target))
        if type(child).__name__ not in _DROP_PATHS:
            break
        kept = kept.all_input_nodes[0]
    return kept


def _is_constant(node: fx.Node) -> bool:
    """Check whether a value depends only on parameters, buffers and numbers."""
    if node.op in ("placeholder", "call_module"):
        return False
    return all(_is_constant(source) for source in node.all_input_nodes)


_DROP_PATHS = ("DropPath", "StochasticDepth", "DropConnect")


def _replace(node: fx.Node, stand_in: fx.Node) -> None:
    node.replace_all_uses_with(stand_in)
    _erase(node)


def _erase(node: fx.Node) -> None:
    """Erase a node and everything computed only for it (such as a projection)."""
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


def _forward_of_modes(traced: ScopeGraph) -> tuple[str, dict[str, Any]]:
    """Return the source of a forward, and the globals that it uses."""
    graphs = [graph for graph in (traced.graph, traced.training) if graph is not None]
    codes = [graph.python_code("self") for graph in graphs]
    names = {name: value for code in codes for name, value in code.globals.items()}
    source = codes[0].src
    if len(codes) == 2:
        # One forward per mode, and one that dispatches.
        source = source.replace("def forward(", "def _forward_eval(", 1) + codes[1].src.replace(
            "def forward(", "def _forward_train(", 1
        )
        source += """
def forward(self, *args, **kwargs):
    run = self._forward_train if self.training else self._forward_eval
    return run(*args, **kwargs)
"""
    return source, names


def _set_forward(module: nn.Module, source: str, names: dict[str, Any]) -> None:
    base = type(module)
    module.__class__ = _subclass(base, source, names)


def _subclass(base: type, source: str, names: dict[str, Any]) -> type:
    """Make a subclass of a module's class with another forward; instances pickle by source."""
    filename = f"<binarize {base.__module__}.{base.__qualname__} {zlib.crc32(source.encode()):x}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    names.pop("__builtins__", None)
    namespace: dict[str, Any] = dict(names)
    exec(compile(source, filename, "exec"), namespace)

    if "_forward_eval" in namespace:
        signature = inspect.signature(namespace["_forward_eval"])
        namespace["forward"].__signature__ = signature

    # Modules cannot be pickled or deep-copied, but their names can.
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
