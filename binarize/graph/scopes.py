"""The forward of a single module as a graph whose operations are those of the trace.

A residual addition or a functional activation can only be removed by rewriting the forward that
calls it. Only that module is traced symbolically; its children stay calls. A forward that cannot
be traced, or whose graph does not match the recorded operations, stays unchanged.
"""

from __future__ import annotations

import difflib
import inspect
import traceback
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from binarize.errors import ModelError
from binarize.graph.classify import function_kind, module_kind, normal_name
from binarize.graph.shapes_only import forget, namespaces, preserve_generators
from binarize.graph.trace import Trace

__all__ = [
    "ScopeGraph",
    "ScopeGraphs",
    "align",
    "asks_for",
    "constants",
    "fits",
    "place_of",
    "trace_scope",
]

# (kind, ordinal) for functions, (path of the child below the scope, ordinal) for modules.
Key = tuple[str, int]


@dataclass
class ScopeGraph:
    """A traced forward and the node of every recorded operation.

    Attributes:
        graph: The forward in eval mode; children are ``call_module`` nodes.
        nodes: Node per operation, see ``Key``.
        training: The forward in training mode if it differs, else ``None``.
        twins: Per node of ``graph``, the node of ``training``.
    """

    graph: fx.Graph
    nodes: dict[Key, fx.Node]
    training: fx.Graph | None
    twins: dict[fx.Node, fx.Node]

    @property
    def portable(self) -> bool:
        """Check whether copies of the traced module have everything that the graphs read from it.

        Tracing stores constants that the forward makes in the module; copies lack them.
        """
        graphs = [graph for graph in (self.graph, self.training) if graph is not None]
        taken = [str(node.target) for g in graphs for node in g.find_nodes(op="get_attr")]
        return not any("_tensor_constant" in name for name in taken)

    def copied(self) -> ScopeGraph:
        """Return a copy for editing."""
        graph, now = _copied(self.graph)
        nodes = {key: now[node] for key, node in self.nodes.items()}
        if self.training is None:
            return ScopeGraph(graph, nodes, None, {})
        training, then = _copied(self.training)
        twins = {now[node]: then[twin] for node, twin in self.twins.items()}
        return ScopeGraph(graph, nodes, training, twins)


def _copied(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    # With something in it, deepcopy fills it with the nodes and their copies, but for the last.
    known: dict[Any, Any] = {None: None}
    made = graph.__deepcopy__(known)
    known[graph.output_node()] = made.output_node()
    return made, known


class ScopeGraphs:
    """The forwards of one network's modules, each traced once for the same arguments.

    Args:
        modules: All modules by path; do not change them afterwards.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._known: dict[str, list[tuple[dict[str, Any], ScopeGraph | ModelError]]] = {}

    def __call__(self, scope: str, given: Mapping[str, Any]) -> ScopeGraph:
        """Return the graph of :func:`trace_scope`, which must not be changed.

        Args:
            scope: Path of the module.
            given: As for :func:`trace_scope`.

        Raises:
            ModelError: As for :func:`trace_scope`.
        """
        known = self._known.setdefault(scope, [])
        found = next((made for asked, made in known if asked == given), None)
        if found is None:
            try:
                found = trace_scope(self._modules[scope], given)
            except ModelError as error:
                found = error
            known.append((dict(given), found))
        if isinstance(found, ModelError):
            raise found
        return found


class _ChildrenAreLeaves(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[fx.Proxy]] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        made = super().proxy(node)
        self.made.append(weakref.ref(made))
        return made


def trace_scope(module: nn.Module, given: Mapping[str, Any] | None = None) -> ScopeGraph:
    """Trace the forward of one module.

    Args:
        module: The module; its training flag is restored.
        given: Arguments that are constants of the graph, see :func:`constants`.

    Returns:
        The graphs. Functions that take ``training=self.training``, drop-paths and the like make
        the training graph differ.

    Raises:
        ModelError: The forward cannot be traced, or its training graph lacks nodes of the eval
            graph.
    """
    graphs = []
    tracers: list[_ChildrenAreLeaves] = []
    before = namespaces(module)
    was_training = module.training
    # A forward that counts in a buffer would also count the tracing.
    buffers = [(own, own.detach().clone(), own._version) for own in module.buffers(recurse=False)]
    try:
        with _mode_watched(module) as reads_mode, preserve_generators():
            for training in (False, True):
                module.training = training
                tracers.append(_ChildrenAreLeaves())
                graphs.append(tracers[-1].trace(module, concrete_args=dict(given or {})))
                _restore_names(module, graphs[-1])
                _drop_checks(graphs[-1])
                if not reads_mode:
                    break
    except Exception as error:
        text = _place(error)
        if not text:
            text = f"{' '.join(str(error).split())[:140]}, {place_of(module)}"
        traceback.clear_frames(error.__traceback__)  # they hold tracer symbols
        raise ModelError(
            "model",
            type(module).__name__,
            f"its forward cannot be traced ({text})",
            "its forward stays unchanged",
        ) from error
    finally:
        module.training = was_training
        with torch.no_grad():
            for own, value, version in buffers:
                if own._version != version:
                    own.copy_(value)
        _forget_proxies(tracers, before)
    graph, other = graphs[0], graphs[-1]
    nodes = _keys(module, graph)
    if str(graph) == str(other):
        return ScopeGraph(graph, nodes, None, {})
    twins = align(graph, other)
    lost = next((key for key, node in nodes.items() if node not in twins), None)
    if lost is not None:
        raise ModelError(
            "model",
            type(module).__name__,
            f"its forward has {lost[0]} number {lost[1]} in eval mode, but not in training "
            f"({place_of(module)})",
            "its forward stays unchanged",
        )
    return ScopeGraph(graph, nodes, other, twins)


def _place(error: BaseException) -> str:
    """Return the last line of non-library code that an error passed: file, number, text."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(ours)
    ]
    if not frames:
        return ""
    last = frames[-1]
    code = f": {last.line.strip()[:100]}" if last.line else ""
    return f"{Path(last.filename).name}:{last.lineno}{code}"


def place_of(module: nn.Module) -> str:
    """Return where a module's forward is defined: file and line."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    if code is None:
        return f"forward of {type(module).__name__}"
    return (
        f"{Path(code.co_filename).name}:{code.co_firstlineno}: forward of {type(module).__name__}"
    )


def _forget_proxies(tracers: list[_ChildrenAreLeaves], before: Any) -> None:
    """Remove tracer symbols from caches that the forward filled with them."""
    left = [proxy for tracer in tracers for ref in tracer.made if (proxy := ref()) is not None]
    if left:
        forget(left, before)


@contextmanager
def _mode_watched(module: nn.Module) -> Iterator[list[bool]]:
    """Record whether a module's mode is read; a forward that does not read it is traced once."""
    reads: list[bool] = []
    cls = type(module)

    def training(self: nn.Module) -> bool:
        if self is module:
            reads.append(True)
        return bool(self.__dict__["training"])

    def assign(self: nn.Module, value: bool) -> None:
        self.__dict__["training"] = value

    watched = type(cls.__name__, (cls,), {"training": property(training, assign)})
    module.__class__ = watched
    try:
        yield reads
    finally:
        module.__class__ = cls


def _restore_names(module: nn.Module, graph: fx.Graph) -> None:
    """Undo the renaming of constant arguments, which the network may pass by keyword."""
    known = inspect.signature(module.forward).parameters
    for node in graph.find_nodes(op="placeholder"):
        name = str(node.target)
        if name not in known and name.rpartition("_")[0] in known:
            node.target = name.rpartition("_")[0]


def _drop_checks(graph: fx.Graph) -> None:
    """Remove the checks of constant arguments: the dispatching forward selects by their values."""
    for node in reversed(list(graph.nodes)):
        message = str(node.args[1]) if len(node.args) > 1 else ""
        if node.op == "call_function" and "has been specialized to have value" in message:
            operands = node.all_input_nodes
            graph.erase_node(node)
            for source in operands:
                if source.op != "placeholder" and not source.users:
                    graph.erase_node(source)


def align(graph: fx.Graph, other: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Pair the nodes of two graphs that do the same in the same order."""
    ours, theirs = list(graph.nodes), list(other.nodes)
    words = [[(node.op, str(node.target)) for node in nodes] for nodes in (ours, theirs)]
    matcher = difflib.SequenceMatcher(a=words[0], b=words[1], autojunk=False)
    return {
        ours[block.a + i]: theirs[block.b + i]
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    }


def fits(scope: ScopeGraph, trace: Trace, path: str) -> str | None:
    """Compare a graph with the recorded operations of its scope.

    Args:
        scope: The traced forward.
        trace: The run.
        path: The scope's dotted name.

    Returns:
        ``None`` if every relevant operation has its node, else the difference.
    """
    prefix = f"{path}." if path else ""
    calls: dict[int, set[Key]] = defaultdict(set)
    for op in trace.inside[path]:
        if op.kind in ("input", "output"):
            continue
        name = op.path.removeprefix(prefix) if op.path is not None else op.kind
        if op.path is not None or op.kind in _TRACKED:
            calls[op.call].add((name, op.ordinal))
    for call, recorded in calls.items():
        missing = recorded - set(scope.nodes)
        if missing:
            return f"call {call} did {sorted(missing)[0]}, which its graph lacks"
    unused = [key for key, node in scope.nodes.items() if not node.users]
    if unused:
        return f"{unused[0]} works in place and its result is unused"
    tracked = {key for key in scope.nodes if key[0] in _TRACKED}
    for call, recorded in calls.items():
        if tracked - recorded:
            return f"its graph has {sorted(tracked - recorded)[0]}, which call {call} did not do"
    return None


_TRACKED = ("add", "mul", "activation")


def constants(
    module: nn.Module, args: Any, kwargs: Any, *, numbers: bool = False
) -> dict[str, Any]:
    """Return the arguments of a recorded call that select the path through the forward.

    Args:
        module: The module that was called.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        numbers: Whether numbers are included.

    Returns:
        Those that are ``None``, flags, strings or numbers, by name, defaults included.
    """
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {}
    kinds = (bool, str, int, float) if numbers else (bool, str)

    def chooses(value: Any) -> bool:
        return value is None or isinstance(value, kinds)

    given = {}
    for name, value in bound.arguments.items():
        if chooses(value):
            given[name] = value
    for name, parameter in inspect.signature(module.forward).parameters.items():
        default = parameter.default
        if name not in bound.arguments and chooses(default):
            given[name] = default
    return given


def asks_for(module: nn.Module, argument: str) -> bool:
    """Check whether a traceable forward takes another path if an argument is ``None``."""
    codes = []
    for given in ({}, {argument: None}):
        try:
            graph = trace_scope(module, given).graph
        except ModelError:
            return True
        codes.append([(str(n.op), str(n.target)) for n in graph.nodes if n.op != "placeholder"])
    return codes[0] != codes[1]


def _keys(module: nn.Module, graph: fx.Graph) -> dict[Key, fx.Node]:
    counts: dict[str, int] = defaultdict(int)
    nodes: dict[Key, fx.Node] = {}
    tensors = _tensor_nodes(graph)
    for node in graph.nodes:
        if node.op == "call_module":
            child = module.get_submodule(str(node.target))
            if module_kind(child) is None:
                continue
            name = str(node.target)
        elif node.op in ("call_function", "call_method") and node in tensors:
            raw = node.target if isinstance(node.target, str) else node.target.__name__
            name = normal_name(raw)
            # A number divided by a tensor is recorded under its own name.
            reciprocal = name == "div" and not isinstance(next(iter(node.args), node), fx.Node)
            name = "other" if reciprocal else function_kind(name)
            if name not in _TRACKED:
                continue
        else:
            continue
        nodes[name, counts[name]] = node
        counts[name] += 1
    return nodes


def _tensor_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Return nodes that produce tensors, not sizes: what depends only on a size is a number."""
    numbers: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_method" and node.target in ("size", "dim", "numel", "stride"):
            numbers.add(node)
        elif node.op == "call_function" and node.target is getattr:
            if node.args[1] in ("shape", "ndim", "dtype", "device", "is_cuda"):
                numbers.add(node)
        elif node.op == "call_function":
            sources = node.all_input_nodes
            makes_tensor = (getattr(node.target, "__module__", "") or "").startswith("torch")
            if sources and not makes_tensor and all(source in numbers for source in sources):
                numbers.add(node)
    return {node for node in graph.nodes if node not in numbers}
