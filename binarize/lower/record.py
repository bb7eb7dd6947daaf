"""Record a network's run as a graph of ATen operators, for arguments of exactly these shapes.

The run uses fake tensors (shapes without values), so feature maps take no memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from binarize.graph.shapes_only import ShapesOnly, written
from binarize.lower.symbolic_sizes import Interpolation, SymbolicSizes

__all__ = ["NotRecordable", "Recording", "record"]


_VIEW = torch.ops.aten.view.default


class NotRecordable(Exception):
    """A run that a graph cannot represent; the message says why."""


def _as_they_are(value: Any) -> Any:
    """Return a structure without symbolic sizes unchanged."""
    return value


@dataclass
class Recording:
    """A run as a graph without side effects.

    Attributes:
        graph: Calls of ATen operators and of this package's. ``meta["value"]`` of a node is an
            empty tensor with its result's shape and dtype on the meta device (a tuple of them for
            several results).
        constants: The targets of ``get_attr`` nodes: parameters, buffers, other tensors.
        numbers: Replaces symbolic sizes in a structure by nodes.
    """

    graph: fx.Graph = field(default_factory=fx.Graph)
    constants: dict[str, Tensor] = field(default_factory=dict)
    numbers: Callable[[Any], Any] = _as_they_are

    def constant(self, value: Tensor) -> fx.Node:
        """Add a node for a known tensor at the graph's insertion point."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = value
        node = self.graph.get_attr(name)
        node.meta["value"] = _shell(value)
        return node


def record(
    run: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    fake: ShapesOnly | None = None,
    sizes: SymbolicSizes | None = None,
) -> Recording:
    """Record what a function does with its arguments, in one run on fake tensors.

    Args:
        run: Takes tensors, returns a list of tensors. Its control flow must not depend on tensor
            values.
        inputs: Its arguments; only shapes, strides, dtypes and devices matter.
        fake: The mode of the run, for callers that check what the run leaves.
        sizes: For a graph that serves other input sizes too; ``fake`` has its environment.

    Returns:
        The graph, with a placeholder per argument and a list as its output.

    Raises:
        NotRecordable: A value is read, the shape of a result depends on values, a tensor that the
            run did not make or that has views is changed in place, or a tensor without values is
            left over from another run.

    In-place changes are recorded as new values, so the graph has no side effects.
    """
    fake = fake or ShapesOnly()
    recorder = _Recorder(fake)
    graph = recorder.recording.graph
    # In inference mode, and on tensors made in it, composite operators would not be decomposed.
    with torch.inference_mode(False), torch.no_grad():
        if sizes is None:
            given = [fake.stand_in(value) for value in inputs]
        else:
            given = [fake.stand_in(v, *sizes.shape(v, i)) for i, v in enumerate(inputs)]
            recorder.recording.numbers = sizes.numbers(graph)
        for index, value in enumerate(given):
            recorder.nodes[value] = node = graph.placeholder(f"input_{index}")
            node.meta["value"] = _shell(value)
        with fake, recorder, Interpolation() if sizes else nullcontext():
            results = list(run(*given))
        graph.output([recorder.node(value) for value in results])
    return recorder.recording


def _shell(value: Any) -> Any:
    with _disable_current_modes():
        return tree_map_only(
            Tensor,
            lambda t: _like(t, torch.device("meta")),
            value,
        )


def _like(value: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


class _Recorder(TorchDispatchMode):
    def __init__(self, fake: ShapesOnly) -> None:
        super().__init__()
        self.fake = fake
        self.recording = Recording()
        self.nodes = WeakTensorKeyDictionary()

    def node(self, value: Tensor) -> fx.Node:
        """Return the node that made a tensor; a tensor without one is a constant."""
        if value not in self.nodes:
            if isinstance(value, FakeTensor):
                raise NotRecordable("it keeps a tensor of an earlier run")
            self.nodes[value] = self.recording.constant(value)
        known: fx.Node = self.nodes[value]
        return known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        values: list[Tensor] = []
        tree_map_only(Tensor, values.append, (args, kwargs))
        if torch.Tag.data_dependent_output in func.tags and not self.fake.knows(values):
            raise NotRecordable(f"it reads values of tensors ({func})")
        if torch.Tag.dynamic_output_shape in func.tags and not self.fake.knows(values):
            raise NotRecordable(f"the shape of a result depends on values ({func})")
        recorded, read = func, kwargs
        aliases: list[Tensor] = []
        if func._schema.is_mutable and self.fake.is_real(func, args, kwargs):
            for target in written(func, args, kwargs):
                self._forget(target, func)
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            outs = [a.name for a in func._schema.arguments if a.is_out]
            read = {name: value for name, value in kwargs.items() if name not in outs}
            target = kwargs[outs[0]] if len(outs) == 1 else values[0]
            recorded, aliases = self._out_of_place(func, outs, target, values)
        operands = self.recording.numbers(tree_map_only(Tensor, self.node, (args, read)))
        result = func(*args, **kwargs)
        node = self.recording.graph.call_function(recorded, *operands)
        node.meta["value"] = _shell(result)
        if isinstance(result, Tensor):
            self.nodes[result] = node
            for alias in aliases:
                shape = self.recording.numbers(list(alias.shape))
                view = self.recording.graph.call_function(_VIEW, (node, shape))
                view.meta["value"] = _shell(alias)
                self.nodes[alias] = view
        elif isinstance(result, list | tuple):
            for index, part in enumerate(result):
                if isinstance(part, Tensor):
                    item = self.recording.graph.call_function(operator.getitem, (node, index))
                    item.meta["value"] = node.meta["value"][index]
                    self.nodes[part] = item
        return result

    def _forget(self, target: Tensor, func: Any) -> None:
        """Make constants of a tensor whose values are known, and of all that share its memory."""
        storage = target.untyped_storage()._cdata
        for other, node in list(self.nodes.items()):
            if other.untyped_storage()._cdata == storage:
                if node.op == "get_attr" and _is_read(node):
                    raise NotRecordable(f"it changes a tensor that was read before ({func})")
                del self.nodes[other]

    def _out_of_place(
        self, func: Any, outs: Sequence[str], target: Tensor, values: Sequence[Tensor]
    ) -> tuple[Any, list[Tensor]]:
        """Return the operator that computes as a new value what ``func`` writes over ``target``.

        Returns:
            The operator, and other tensors with the same values in another shape.
        """
        aliases = []
        pure = _pure(func, outs)
        if pure is None or any(v.dtype != target.dtype for v in values):
            raise NotRecordable(f"it changes a tensor in place ({func})")
        self.node(target)  # a constant, if nothing has read it yet
        storage = target.untyped_storage()._cdata
        for other, node in list(self.nodes.items()):
            # A reader of the same memory under another name would also see the change.
            same = other.untyped_storage()._cdata == storage
            if not same:
                continue
            if node.op != "call_function" or not _same_values(other, target):
                raise NotRecordable(f"it changes a tensor that is read elsewhere ({func})")
            if other is not target:
                aliases.append(other)
        return pure, aliases


def _same_values(a: Tensor, b: Tensor) -> bool:
    """Check whether two tensors in the same memory have the same values in the same order."""
    if a.dtype != b.dtype or a.storage_offset() != b.storage_offset():
        return False
    steps = [
        [(n, step) for n, step in zip(x.shape, x.stride(), strict=True) if n != 1] for x in (a, b)
    ]
    both = bool(a.is_contiguous()) and bool(b.is_contiguous())
    return steps[0] == steps[1] or (both and a.numel() == b.numel())


def _is_read(node: fx.Node) -> bool:
    """Check whether a node is read by anything except views of it."""
    for user in node.users:
        returns = getattr(getattr(user.target, "_schema", None), "returns", ())
        if not returns or returns[0].alias_info is None or _is_read(user):
            return True
    return False


def _pure(func: Any, outs: Sequence[str]) -> Any:
    """Return the functional form of ``name_`` and of ``name.out``, or ``None``."""
    name, _, overload = func.__name__.partition(".")
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    if not outs:
        return getattr(packet, overload, None) if name.endswith("_") else None
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments if a.name not in outs]
    for each in packet.overloads() if packet is not None and len(outs) == 1 else []:
        found = getattr(packet, each)
        given = [(a.name, str(a.type)) for a in found._schema.arguments]
        if given == wanted and not found._schema.is_mutable:
            return found
    return None
