"""Record the operations of a run: functions, and modules that count as one operation."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter

from binarize.graph.call_facts import factor_of, macs_of, order_of
from binarize.graph.classify import function_kind, module_kind, normal_name
from binarize.graph.memory import Memory
from binarize.graph.shapes_only import ShapesOnly

__all__ = ["Op", "Recorder"]


@dataclass(frozen=True)
class Op:
    """One operation of a run.

    Attributes:
        index: Position in the run; operations are in order of execution.
        kind: See :mod:`binarize.graph.classify`; also ``"input"`` and ``"output"``.
        name: Normalized name of the function, or class of the module.
        scope: Dotted path of the module whose forward made the call.
        call: How many times that module had been called before.
        ordinal: Position among the operations of this kind (functions) or of this module (modules)
            that the scope made directly, in this call.
        path: Dotted path of the module, for modules that are traced as one call.
        inputs: Operations that made the tensor operands, in the order of the operands.
        constant: Whether a parameter, a buffer or a number is among the operands.
        in_shape: Shape of the first operand made by an operation.
        shape: Shape of the (first) result.
        macs: Multiply-accumulates of products of two computed tensors and of functional layers,
            ``None`` if unknown; 0 otherwise (layers are counted where their weights are known).
        order: For permutations: per dimension of the result, that of the operand.
        factor: The number that multiplies the operand, ``None`` for other operations.
    """

    index: int
    kind: str
    name: str
    scope: str
    call: int
    ordinal: int
    path: str | None
    inputs: tuple[int, ...]
    constant: bool
    in_shape: tuple[int, ...]
    shape: tuple[int, ...]
    macs: int | None = 0
    order: tuple[int, ...] = ()
    factor: float | None = None


class Recorder(TorchFunctionMode):
    """Records the operations of a run.

    Args:
        model: The network that runs.
        fake: The mode of a run without values; ``None`` for one with values.
    """

    def __init__(self, model: nn.Module, fake: ShapesOnly | None) -> None:
        super().__init__()
        self.model = model
        self.ops: list[Op] = []
        self.arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.calls: dict[str, int] = defaultdict(int)
        self.direct: set[int] = set()
        self._parameters = {id(parameter) for parameter in model.parameters()}
        # Weak, so that a run on real tensors needs no more memory than the network itself.
        self._producer: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._memory = Memory(fake)
        self._scopes: list[tuple[str, int, dict[Any, int]]] = [("", 0, defaultdict(int))]
        self._whole = 0
        self.paths: dict[int, list[str]] = defaultdict(list)
        for path, module in model.named_modules(remove_duplicate=False):
            self.paths[id(module)].append(path)

    def _made_by(self, value: Tensor, index: int) -> None:
        self._producer[id(value)] = weakref.ref(value), index

    def _maker(self, value: Tensor) -> int | None:
        known = self._producer.get(id(value))
        made = known[1] if known is not None and known[0]() is value else None
        written = self._memory.writer(value)
        return made if written is None else max(written, made or 0)

    def _path(self, module: nn.Module) -> str:
        """Return a module's path; for a shared module, the one below the scope that calls it."""
        paths = self.paths[id(module)]
        scope = self._scopes[-1][0]
        below = [path for path in paths if not scope or path.startswith(scope + ".")]
        return (below or paths)[0]

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Record calls of the model's modules."""
        handles = []
        for module in self.model.modules():
            handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._whole:
            self._whole += 1
            return
        if module_kind(module) is not None:
            self._whole = 1
            return
        path = "" if module is self.model else self._path(module)
        call = self.calls[path]
        self.calls[path] += 1
        if call == 0:
            self.arguments[path] = (args, kwargs)
        self._scopes.append((path, call, defaultdict(int)))

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._whole > 1:
            self._whole -= 1
            return
        if self._whole == 0:
            self._scopes.pop()
            return
        self._whole = 0
        path = self._path(module)
        self.calls[path] += 1
        kind = module_kind(module) or "other"
        self._add(kind, type(module).__name__, path, (args, kwargs), output, path)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = _batch_norm(func, args, kwargs)
        if output is None:
            output = func(*args, **kwargs)
        if self._whole:
            return output
        raw = getattr(func, "__name__", str(func))
        name = normal_name(raw)
        kind = function_kind(name)
        if name in _ASSIGNING and _writes(raw) and args and isinstance(args[0], Tensor):
            # The existing tensor and what is placed next to it, or written over it.
            whole = self._memory.whole(args[0])
            self._add(kind, name, kind, (whole, args[1:], kwargs), whole, None, raw=raw)
        elif any(isinstance(x, Tensor) for x in tree_iter(output)):
            order = order_of(func, args, kwargs) if name in _PERMUTING else ()
            given = {key: value for key, value in kwargs.items() if key != "out"}
            factor = factor_of(name, args, given) if kind == "mul" else None
            out = kwargs.get("out")
            self._add(kind, name, kind, (args, given), output, None, order, out, raw, factor)
        return output

    def _add(
        self,
        kind: str,
        name: str,
        count: Any,
        operands: Any,
        output: Any,
        path: str | None,
        order: tuple[int, ...] = (),
        out: Any = None,
        raw: str = "",
        factor: float | None = None,
    ) -> None:
        inputs: list[int] = []
        constant = False
        in_shape: tuple[int, ...] = ()
        tensors = []
        for value in tree_iter(operands):
            if isinstance(value, Tensor):
                tensors.append(value)
                source = self._maker(value)
                if source is None:
                    constant = True
                    if path is None and id(value) in self._parameters and name not in _PATTERNS:
                        self.direct.add(id(value))
                    continue
                in_shape = in_shape or tuple(value.shape)
                inputs.append(source)
            elif isinstance(value, int | float) and not isinstance(value, bool):
                constant = True
        results = [x for x in tree_iter(output) if isinstance(x, Tensor)]
        outs = [x for x in tree_iter(out) if isinstance(x, Tensor)]
        self._memory.see(tensors + outs, results)
        if not inputs and kind in ("other", "shape"):
            # Made from constants alone (anchors, position grids): not part of the signal flow.
            return
        scope, call, counts = self._scopes[-1]
        index = len(self.ops)
        self.ops.append(
            Op(
                index=index,
                kind=kind,
                name=name,
                scope=scope,
                call=call,
                ordinal=counts[count],
                path=path,
                inputs=tuple(inputs),
                constant=constant,
                in_shape=in_shape,
                shape=tuple(results[0].shape) if results else (),
                macs=macs_of(kind, name, tensors, results),
                order=order,
                factor=factor,
            )
        )
        counts[count] += 1
        earlier = {id(x): self._maker(self._memory.whole(x)) for x in results}
        for result in results:
            self._made_by(result, index)
        writes = kind == "activation" or _writes(raw) or bool(outs)
        for written in (x for x in results if writes and any(x is y for y in tensors + outs)):
            whole = self._memory.whole(written)
            before = earlier[id(written)]
            self._memory.write(written, index)
            if written.numel() < whole.numel() and kind != "cat":
                # A part was changed and stays next to the others.
                part = () if before is None else (before,)
                self._memory.write(written, len(self.ops))
                shape = tuple(whole.shape)
                self.ops.append(
                    replace(
                        self.ops[index],
                        index=len(self.ops),
                        kind="cat",
                        name="setitem",
                        ordinal=counts["cat"],
                        path=None,
                        inputs=(*part, index),
                        constant=not part,
                        in_shape=shape,
                        shape=shape,
                        macs=0,
                        order=(),
                    )
                )
                counts["cat"] += 1

    def add_inputs(self, values: Any) -> None:
        """Record the inputs of the run."""
        for value in tree_iter(values):
            if isinstance(value, Tensor):
                index = len(self.ops)
                shape = tuple(value.shape)
                self.ops.append(
                    Op(index, "input", "input", "", 0, index, None, (), False, (), shape)
                )
                self._made_by(value, index)
                self._memory.see([], [value])

    def add_outputs(self, values: Any) -> None:
        """Record the outputs of the run."""
        for value in _tensors(values):
            source = self._maker(value)
            if source is not None:
                index = len(self.ops)
                shape = tuple(value.shape)
                self.ops.append(
                    Op(index, "output", "output", "", 0, 0, None, (source,), False, shape, shape)
                )


def _writes(name: str) -> bool:
    """Check whether a function of this name writes to its first operand."""
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name != "__invert__")
    return name.endswith("_")


_ASSIGNING = frozenset(
    "setitem copy index_copy index_put scatter masked_scatter index_add scatter_add put".split()
)
# Functions that take a shape or a dtype from an operand, but no values.
_PATTERNS = frozenset(
    "type_as to expand_as view_as reshape_as zeros_like ones_like empty_like full_like rand_like "
    "randn_like new_zeros new_ones new_full new_empty new_tensor".split()
)
_PERMUTING = ("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims")


def _batch_norm(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Return a batch norm's result on a fake tensor; torch takes milliseconds for its shape."""
    x = args[0] if args else None
    if func is not F.batch_norm or not isinstance(x, FakeTensor) or x.dim() < 2:
        return None
    widths = {len(v) for v in (*args[1:], *kwargs.values()) if isinstance(v, Tensor)}
    mode: Any = x.fake_mode
    fits = widths == {x.shape[1]} and isinstance(mode, ShapesOnly)
    return mode.stand_in(x) if fits else None


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    """Yield tensors in nested containers, also in dataclasses and objects that pytree skips."""
    for leaf in tree_iter(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module | type) and depth < 4:
            yield from _tensors(list(vars(leaf).values()), depth + 1)
