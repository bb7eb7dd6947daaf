"""Symbolic input sizes: one general program for inputs of every size.

While a network is recorded, the sizes of its inputs are symbols. What it computes from them is an
expression, which becomes nodes of the graph. Every decision that depends on one (a Python ``if``, a
fusion) becomes a condition, and the program is valid for the sizes that meet them all. This is
torch's machinery for dynamic shapes, :class:`torch.fx.experimental.symbolic_shapes.ShapeEnv`.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Hashable, Sequence
from typing import Any

import sympy
import torch
import torch.nn.functional as F
from torch import SymBool, SymFloat, SymInt, Tensor, fx
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.fx.proxy import GraphAppendingTracer
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

__all__ = [
    "Interpolation",
    "Numbers",
    "SymbolicSizes",
    "dimension_order",
    "form",
    "hint",
    "integer_factor",
    "is_symbolic",
    "strides_of",
    "upsampled_source",
]

_SYMBOLIC = (SymInt, SymFloat, SymBool)


def is_symbolic(value: Any) -> bool:
    """Check whether a tensor's shape, or any value in a structure, depends on symbolic sizes."""
    values = value.shape if isinstance(value, Tensor) else tree_iter(value)
    return any(isinstance(x, _SYMBOLIC) for x in values)


def hint(value: Any) -> Any:
    """Return the value of an expression for the recorded sizes; other values unchanged.

    For decisions that only affect speed, and so need not become conditions.
    """
    if not isinstance(value, SymInt):
        return value
    environment: Any = value.node.shape_env
    return int(value.node.expr.xreplace(environment.examples))


def dimension_order(value: Tensor) -> tuple[int, ...] | None:
    """Return a dense tensor's dimensions from outermost to innermost, of others ``None``."""
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    dense = strides_of(value.shape, order) == value.stride()
    return tuple(order) if dense else None


def strides_of(shape: Sequence[Any], order: Sequence[int]) -> tuple[Any, ...]:
    """Return the strides of a dense tensor, in elements.

    Args:
        shape: Its sizes, numbers or expressions.
        order: Its dimensions from outermost to innermost.
    """
    strides, step = [1] * len(shape), 1
    for d in reversed(order):
        strides[d], step = step, step * shape[d]
    return tuple(strides)


def form(leaves: Sequence[Any], spec: Any, autocast: Hashable) -> Hashable | None:
    """Return what a general program depends on besides its conditions.

    Batch size and spatial sizes are free if they are at least two: a size of one may be broadcast.

    Args:
        leaves: Flattened arguments.
        spec: Their structure.
        autocast: See :func:`binarize.lower.program.autocast_state`.

    Returns:
        Structure, memory order and dtypes of the arguments, and autocast; ``None`` if an argument
        is not dense or no size is free.
    """
    described: list[Any] = []
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            described.append((type(leaf), leaf))
            continue
        order = dimension_order(leaf)
        if order is None:
            return None
        sizes = tuple(None if _may_vary(leaf, d) else n for d, n in enumerate(leaf.shape))
        described.append((sizes, order, leaf.dtype, leaf.device))
    free = any(
        isinstance(x, Tensor) and None in d[0] for x, d in zip(leaves, described, strict=True)
    )
    return (spec, tuple(described), autocast) if free else None


def _may_vary(value: Tensor, dim: int) -> bool:
    return value.dim() >= 2 and dim != 1 and value.shape[dim] >= 2


class _Environment(ShapeEnv):
    """An environment that knows the recorded value of each symbol."""

    def __init__(self) -> None:
        super().__init__(duck_shape=False)
        self.examples: dict[sympy.Symbol, int] = {}


class SymbolicSizes:
    """The symbols of one recording.

    Attributes:
        environment: What the fake tensors of the recording need.
    """

    def __init__(self) -> None:
        self.environment = _Environment()
        # Input and dimension that each symbol stands for.
        self._places: dict[sympy.Symbol, tuple[int, int]] = {}

    def shape(self, value: Tensor, index: int) -> tuple[list[Any], tuple[Any, ...]]:
        """Return the sizes and strides of an input, with new symbols for its free sizes.

        Args:
            value: The input, dense.
            index: Its index.
        """
        sizes: list[Any] = list(value.shape)
        for d, length in enumerate(value.shape):
            if not _may_vary(value, d):
                continue
            source = ConstantSource(f"input_{index}_size_{d}")
            symbol = self.environment.create_symbol(length, source, DimDynamic.DYNAMIC)
            self.environment.examples[symbol] = length
            self._places[symbol] = index, d
            sizes[d] = self.environment.create_symintnode(symbol, hint=length, source=source)
        order = dimension_order(value)
        assert order is not None
        return sizes, strides_of(sizes, order)

    @property
    def is_constant(self) -> bool:
        """Whether the run allows only one value of some size."""
        return any(
            self.environment.replacements.get(symbol, symbol).is_number for symbol in self._places
        )

    def numbers(self, graph: fx.Graph) -> Numbers:
        """Return a converter of expressions to nodes of a graph with the inputs as placeholders."""
        return Numbers(graph, self._places)

    def conditions(self) -> fx.Graph:
        """Return a graph that computes from the inputs a list of conditions on their sizes."""
        graph = fx.Graph()
        count = 1 + max(index for index, _ in self._places.values())
        for index in range(count):
            graph.placeholder(f"input_{index}")
        numbers = self.numbers(graph)
        known = [sympy.Ge(symbol, 2) for symbol in self._places]
        found = dict.fromkeys([*known, *(guard.expr for guard in self.environment.guards)])
        graph.output([numbers.node(each) for each in found if each is not sympy.true])
        return graph


class Numbers:
    """Converts expressions to nodes, which follow the placeholders of a graph.

    Args:
        graph: A graph with its placeholders. Its nodes may be erased between calls.
        places: Input and dimension of each symbol.
    """

    def __init__(self, graph: fx.Graph, places: dict[sympy.Symbol, tuple[int, int]]) -> None:
        self._graph = graph
        self._places = places

    def __call__(self, value: Any) -> Any:
        """Replace expressions in a structure by nodes, or by numbers where they are constant."""
        return tree_map_only(_SYMBOLIC, lambda each: self.node(each.node.expr), value)

    def node(self, expression: Any) -> Any:
        """Return the node or, if it is constant, the value of an expression."""
        inputs, known, last = [], {}, None
        for node in self._graph.nodes:
            if node.op == "placeholder":
                inputs.append(node)
            elif "expression" not in node.meta:
                break
            else:
                known[node.meta["expression"]] = node
            last = node
        if expression in known:
            return known[expression]
        tracer = _Tracer(self._graph, last)
        symbols = {}
        for symbol in sorted(expression.free_symbols, key=str):
            if symbol not in known:
                index, dim = self._places[symbol]
                size = torch.ops.aten.sym_size.int
                known[symbol] = tracer.create_node("call_function", size, (inputs[index], dim), {})
                known[symbol].meta["expression"] = symbol
            symbols[symbol] = fx.Proxy(known[symbol], tracer)
        made = sympy_interp(_Arithmetic, symbols, expression)
        if not isinstance(made, fx.Proxy):
            return made
        made.node.meta["expression"] = expression
        return made.node


def _traced(function: Any) -> Any:
    """Wrap a function of numbers to become a node if an argument is a proxy."""

    def call(*values: Any) -> Any:
        proxy = next((v for v in values if isinstance(v, fx.Proxy)), None)
        if proxy is None:
            return function(*values)
        return proxy.tracer.create_proxy("call_function", function, values, {})

    return call


class _Arithmetic(PythonReferenceAnalysis):  # type: ignore[misc]
    """Python's functions, which :class:`torch.fx.Proxy` does not trace."""

    @staticmethod
    def floor_to_int(x: Any, dtype: Any) -> Any:
        return _traced(math.floor)(x)

    @staticmethod
    def ceil_to_int(x: Any, dtype: Any) -> Any:
        return _traced(math.ceil)(x)

    @staticmethod
    def trunc_to_int(x: Any, dtype: Any) -> Any:
        return _traced(math.trunc)(x)

    @staticmethod
    def to_dtype(x: Any, dtype: Any) -> Any:
        return _traced(float)(x)

    @staticmethod
    def minimum(a: Any, b: Any) -> Any:
        return _traced(min)(a, b)

    @staticmethod
    def maximum(a: Any, b: Any) -> Any:
        return _traced(max)(a, b)

    @staticmethod
    def not_(a: Any) -> Any:
        return _traced(operator.not_)(a)


class _Tracer(GraphAppendingTracer):
    """Inserts nodes one after another, the first after a given one."""

    def __init__(self, graph: fx.Graph, last: Any) -> None:
        super().__init__(graph)
        self._last = last

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        with self.graph.inserting_after(self._last):
            node = super().create_node(*args, **kwargs)
        node.meta["expression"] = None
        self._last = node
        return node


class Interpolation(TorchFunctionMode):
    """Calls operators in place of ``torch.nn.functional.interpolate``, which needs plain sizes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.interpolate:
            bound = _INTERPOLATE.bind(*args, **(kwargs or {}))
            bound.apply_defaults()
            found = bound.arguments
            if is_symbolic((found["input"], found["size"])) or is_symbolic(found["input"]):
                return _interpolate(**found)
        return func(*args, **(kwargs or {}))


_INTERPOLATE = inspect.signature(F.interpolate)
_NAMES = {
    "nearest": "upsample_nearest{}d",
    "nearest-exact": "_upsample_nearest_exact{}d",
    "linear": "upsample_linear{}d",
    "bilinear": "upsample_bilinear{}d",
    "bicubic": "upsample_bicubic{}d",
    "trilinear": "upsample_trilinear{}d",
}


def _interpolate(
    input: Tensor,
    size: Any,
    scale_factor: Any,
    mode: str,
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
    antialias: bool,
) -> Tensor:
    dims = input.dim() - 2
    scales: Any = [None] * dims
    if size is None:
        scales = scale_factor if isinstance(scale_factor, list | tuple) else [scale_factor] * dims
        size = [
            n * int(s) if s == int(s) else torch.sym_int(n * s)
            for n, s in zip(input.shape[2:], scales, strict=True)
        ]
        if recompute_scale_factor:
            scales = [None] * dims
    elif not isinstance(size, list | tuple):
        size = [size] * dims
    if mode == "area":
        return getattr(F, f"adaptive_avg_pool{dims}d")(input, size)
    name = _NAMES[mode].format(dims) + ("_aa" if antialias else "")
    operator = getattr(torch.ops.aten, "_" + name if antialias else name).default
    corners = [] if mode.startswith("nearest") else [bool(align_corners)]
    return operator(input, list(size), *corners, *scales)


def integer_factor(small: Sequence[int], large: Sequence[int], scales: Sequence[Any]) -> int | None:
    """Return the integer factor by which nearest neighbour upsamples all sides, if there is one.

    Args:
        small: Spatial sizes of the feature map.
        large: Spatial sizes of the result.
        scales: Scale per side, or ``None``; one that does not match the sizes shifts the grid.
    """
    factors = {(b // a if a and b % a == 0 else 0) for a, b in zip(small, large, strict=True)}
    factor = factors.pop()
    exact = all(math.isclose(s, factor) for s in scales if s is not None)
    return factor if factor and not factors and exact else None


def upsampled_source(
    x: Tensor, means: Tensor | None, size: Sequence[int], scales: Sequence[Any], exact: bool
) -> tuple[Tensor, int, Tensor]:
    """Upsample a feature map by nearest neighbour, unless the unit that reads it can.

    Args:
        x: (N, C, *spatial).
        means: Its means per sample and channel, if known.
        size: Spatial sizes of the result.
        scales: See :func:`integer_factor`.
        exact: ``nearest-exact`` instead of ``nearest``.

    Returns:
        The feature map that the unit reads, the factor by which the unit upsamples it, and its
        means, empty if unknown.
    """
    factor = integer_factor(x.shape[2:], size, scales)
    if factor:
        return x, factor, x.new_empty(0) if means is None else means
    name = f"{'_upsample_nearest_exact' if exact else 'upsample_nearest'}{len(size)}d"
    y = getattr(torch.ops.aten, name).default(x, list(size), *scales)
    return y, 1, x.new_empty(0)
