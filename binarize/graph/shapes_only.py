"""Run a network on shapes alone, leaving no trace outside the run.

Forwards cache what they compute: coordinate grids by size in a dictionary or an
``functools.lru_cache``, tables in class attributes, closures and default arguments. A run on fake
tensors would fill such caches with tensors without values, and the original network reads the
same caches. Therefore everything that does not depend on the images is computed as usual, and
only the rest is fake; fake tensors that outlive the run are found and removed from the caches.
"""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import BuiltinFunctionType, CellType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_iter, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "ShapesOnly",
    "forget",
    "forget_sizes",
    "leave_nothing",
    "memory_of",
    "namespaces",
    "preserve_generators",
    "written",
]

_aten = torch.ops.aten
_LIKE = {
    _aten.new_empty.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
    _aten.empty_like.default,
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.full_like.default,
}
_FAKE = frozenset({FakeTensor, nn.Parameter})
# Values that a tensor made like another may have; a forward caches no larger ones.
_MANY = 2**22


class ShapesOnly(FakeTensorMode):
    """Fake tensors for values that depend on inputs and parameters, real ones for the rest.

    Results of operations without operands are real (grids, tables, masks), and so are those whose
    operands are such results, buffers and other tensors that existed before. Nothing that existed
    before is written to, and no random numbers are drawn.

    Args:
        sizes: The environment of symbolic input sizes, if they are symbolic.
    """

    def __init__(self, sizes: ShapeEnv | None = None) -> None:
        super().__init__(allow_non_fake_inputs=True, shape_env=sizes)
        self._made: list[weakref.ref[Tensor]] = []
        # Memory that this run allocated, and memory that by now has the values of fake tensors.
        # Addresses of earlier memory are never reused during the run.
        self._own: set[int] = set()
        self._fake: set[int] = set()
        self._inside = False
        self._memory_of_stand_ins: dict[int, int] = {}
        self._stand_ins = WeakTensorKeyDictionary()

    def knows(self, values: Iterable[Any]) -> bool:
        """Check whether all tensors among these have values."""
        return all(
            not isinstance(v, FakeTensor | nn.Parameter) and memory_of(v) not in self._fake
            for v in values
            if isinstance(v, Tensor)
        )

    @property
    def alive(self) -> list[Tensor]:
        """Return the fake tensors that still exist."""
        return [tensor for ref in self._made if (tensor := ref()) is not None]

    def made(self, value: Any) -> None:
        """Register fake tensors."""
        if type(value) is FakeTensor:
            self._made.append(weakref.ref(value))
        else:
            self._made += [weakref.ref(x) for x in tree_iter(value) if isinstance(x, FakeTensor)]

    def stand_in(self, value: Tensor, shape: Any = None, strides: Any = None) -> Tensor:
        """Make a fake tensor with the dtype and device of a tensor, by default of its shape."""
        shape, strides = shape or value.shape, strides or value.stride()
        shell = torch.empty_strided(shape, strides, dtype=value.dtype, device="meta")
        fake: Any = FakeTensor(self, shell, value.device)
        self.made(fake)
        return fake

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, see the class."""
        kwargs = kwargs or {}
        if self._inside:
            # The parts of a composite operator, called for the shape of its result.
            return super().dispatch(func, types, args, kwargs)
        if func in _LIKE and isinstance(args[0], FakeTensor):
            pattern = args[0]
            free = any(isinstance(n, torch.SymInt) for n in tree_iter((pattern.shape, args[1:])))
            length = 0 if free else pattern.numel() if len(args) < 2 else _length(args[1])
            if not free and length <= _MANY:
                with_values = torch.empty_strided(
                    pattern.shape, pattern.stride(), dtype=pattern.dtype, device=pattern.device
                )
                args = (with_values, *args[1:])
        # The first operands decide for most operators, without a search of all.
        if not any(type(arg) in _FAKE for arg in args) and self.is_real(func, args, kwargs):
            before = {memory_of(x) for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
            result = func(*args, **kwargs)
            made = [x for x in tree_iter(result) if isinstance(x, Tensor)]
            new = {memory_of(x) for x in made} - before
            self._own |= new
            self._fake -= new  # an address is reused
            return result
        targets = [v for v in written(func, args, kwargs) if not isinstance(v, FakeTensor)]
        self._fake |= {memory_of(v) for v in targets}
        if self._fake:
            # The mode itself would write to a real number and continue with its value.
            args, kwargs = tree_map_only(Tensor, self._without_value, (args, kwargs))
        self._inside = True
        # Symbolic shapes need the operators' Python implementations.
        ready = nullcontext() if self.shape_env is None else enable_python_dispatcher()
        try:
            with ready:
                result = super().dispatch(func, types, args, kwargs)
        finally:
            self._inside = False
        self.made(result)
        # The caller continues with its own arguments, not with their substitutes.
        return targets[0] if len(targets) == 1 and isinstance(result, Tensor) else result

    def memory(self, value: Tensor) -> int:
        """Return an id of a tensor's memory; a fake tensor for a real one has the real one's id."""
        key = memory_of(value)
        return self._memory_of_stand_ins.get(key, key) if isinstance(value, FakeTensor) else key

    def _without_value(self, value: Tensor) -> Tensor:
        if isinstance(value, FakeTensor) or memory_of(value) not in self._fake:
            return value
        known = self._stand_ins.get(value)
        if known is None:
            known = self._stand_ins[value] = self.stand_in(value)
            self._memory_of_stand_ins[memory_of(known)] = memory_of(value)
        return known

    def is_real(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Check whether an operator runs on real values."""
        operands = list(tree_iter((args, kwargs)))
        values = [x for x in operands if isinstance(x, Tensor)]
        if not isinstance(func, torch._ops.OpOverload) or not self.knows(values):
            return False
        if any(isinstance(x, torch.SymInt | torch.SymFloat) for x in operands):
            return False  # such as a grid of symbolic size
        if torch.Tag.nondeterministic_seeded in func.tags:
            return False
        return all(memory_of(v) in self._own for v in written(func, args, kwargs))


def memory_of(value: Tensor) -> int:
    """Return an id of a tensor's memory among existing tensors."""
    try:
        return value.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return -id(value)


def _length(size: Any) -> int:
    length = 1
    for side in size if isinstance(size, list | tuple) else ():
        length *= int(side)
    return length


def written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the operands that an operator writes to."""
    found = []
    for index, name in _outs(func):
        value = args[index] if index < len(args) else kwargs.get(name)
        found += [x for x in tree_iter(value) if isinstance(x, Tensor)]
    return found


@functools.cache
def _outs(func: Any) -> tuple[tuple[int, str], ...]:
    """Return the positions and names of the operands that an operator writes to."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.is_mutable:
        return ()
    return tuple(
        (index, argument.name)
        for index, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


# What outlives a run


def leave_nothing(
    fake: ShapesOnly,
    model: nn.Module,
    copy: nn.Module,
    before: Mapping[int, tuple[Any, Any]],
) -> None:
    """Remove what a run without values left outside the copy that it ran on.

    Args:
        fake: The mode of the run.
        model: The network.
        copy: Its copy, which ran.
        before: From :func:`namespaces`, before the run.
    """
    if not fake.alive:
        return
    inside = reachable(copy) - reachable(model)
    if all(id(tensor) in inside for tensor in fake.alive):
        return
    left = [tensor for tensor in fake.alive if id(tensor) not in inside]
    if left:
        forget(left, before)


def namespaces(model: nn.Module) -> dict[int, tuple[Any, Any]]:
    """Return the current variables that the code of a network's modules may assign.

    Returns:
        Each owner and its contents, by ``id``: classes, Python modules, and lists or dictionaries
        that one of their variables holds.
    """
    found: dict[int, tuple[Any, Any]] = {}
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    for cls in classes:
        if cls is object or cls.__module__.split(".")[0] == "torch":
            continue
        for owner in (cls, sys.modules.get(cls.__module__)):
            if owner is None or id(owner) in found:
                continue
            found[id(owner)] = owner, dict(vars(owner))
            for value in found[id(owner)][1].values():
                if type(value) in (list, dict) and id(value) not in found:
                    found[id(value)] = value, value.copy()
    return found


def forget_sizes(before: Mapping[int, tuple[Any, Any]]) -> None:
    """Restore variables that now hold symbolic sizes.

    Args:
        before: From :func:`namespaces`.
    """
    for owner, old in before.values():
        contents = _contents(owner) or {}
        if isinstance(owner, list):
            if any(map(_holds_size, owner)):
                owner[:] = old
            continue
        for key in [key for key, value in contents.items() if _holds_size(value)]:
            if isinstance(owner, dict):
                owner.pop(key)
                owner.update({key: old[key]} if key in old else {})
            elif key in old:
                setattr(owner, key, old[key])
            else:
                delattr(owner, key)


def _holds_size(value: Any) -> bool:
    return any(isinstance(x, torch.SymInt | torch.SymFloat) for x in tree_iter(value))


def forget(leaked: Sequence[Any], before: Mapping[int, tuple[Any, Any]]) -> None:
    """Remove objects from whatever refers to them.

    A variable or entry known from before gets its old value back. Another entry of a dictionary,
    list or set is removed, another variable is set to ``None``, and a ``functools.lru_cache`` is
    emptied.

    Args:
        leaked: The objects.
        before: From :func:`namespaces`.
    """
    front = list(leaked)
    spared = {id(leaked), id(before)}
    spared |= {id(pair) for pair in before.values()} | {id(old) for _, old in before.values()}
    owners = {id(_contents(owner)): (owner, old) for owner, old in before.values()}
    seen: set[int] = set()
    for _ in range(_DEPTH):
        seen |= {id(item) for item in front}
        holders = gc.get_referrers(*front)  # scans every object, so call it rarely
        spared |= {id(front), id(holders)}
        todo = []
        for holder in holders:
            if id(holder) in spared or id(holder) in seen or isinstance(holder, _LEFT):
                continue
            if not _remove(front, holder, owners):
                todo.append(holder)
        front, holders = todo, []
        if not front:
            break


# Depth of the search through containers in containers.
_DEPTH = 6
_LEFT = (FrameType, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)


def _contents(owner: Any) -> Any:
    """Return the mapping of a module's or class's variables, a proxy for a class."""
    if isinstance(owner, list | dict):
        return owner
    variables = vars(owner)
    if isinstance(variables, dict):
        return variables
    return next((x for x in gc.get_referents(variables) if isinstance(x, dict)), None)


def _remove(items: Sequence[Any], holder: Any, owners: Mapping[int, tuple[Any, Any]]) -> bool:
    """Remove objects from a holder; ``False`` if the holder itself must be removed."""
    gone = {id(item) for item in items}
    owner, old = owners.get(id(holder), (None, {}))
    if isinstance(holder, functools._lru_cache_wrapper):
        holder.cache_clear()
    elif isinstance(holder, CellType):
        holder.cell_contents = None
    elif isinstance(holder, dict):
        for key in [k for k, v in holder.items() if id(k) in gone or id(v) in gone]:
            if isinstance(owner, type | ModuleType):
                setattr(owner, key, old[key]) if key in old else delattr(owner, key)
            elif key in old:
                holder[key] = old[key]
            elif isinstance(holder.get("__name__"), str):
                holder[key] = None
            else:
                del holder[key]
    elif isinstance(holder, list):
        holder[:] = [x for x in holder if id(x) not in gone] if owner is None else old
    elif isinstance(holder, set):
        holder -= {x for x in holder if id(x) in gone}
    elif any(id(v) in gone for v in getattr(holder, "__dict__", {}).values()):
        for key in [k for k, v in vars(holder).items() if id(v) in gone]:
            vars(holder)[key] = None
    else:
        return False
    return True


def reachable(root: nn.Module) -> set[int]:
    """Return the ids of tensors held by the attributes of a network's modules, at any depth."""
    found: set[int] = set()
    seen: set[int] = set()
    todo: list[Any] = [vars(module) for module in root.modules()]
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.add(id(item))
        elif not isinstance(item, _NOT_INSIDE):
            todo += gc.get_referents(item)
    return found


_NOT_INSIDE = (
    *(type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, nn.Module),
    *(str, int, float),
)


@contextmanager
def preserve_generators() -> Iterator[None]:
    """Restore the states of the random number generators on exit."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield
