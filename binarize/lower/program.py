"""Programs: what a packed network runs for inputs of one size, and their stored form."""

from __future__ import annotations

import math
import operator
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import (
    TreeSpec,
    tree_flatten,
    tree_unflatten,
    treespec_dumps,
    treespec_loads,
)

from binarize.errors import ModelError
from binarize.kernels import memory
from binarize.kernels.ops import run_unit
from binarize.lower.float_layers import conv1x1
from binarize.lower.symbolic_sizes import form, strides_of, upsampled_source

__all__ = ["PackedPrograms", "Program", "from_data", "program_key", "to_data"]

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_NAMED: dict[str, Any] = {
    "getitem": operator.getitem,
    "binarize.unit": run_unit,
    "convolve_points": conv1x1,  # the name that stored programs use
    "empty": memory.empty,
    "upsampled_source": upsampled_source,
    # Arithmetic of sizes.
    **{f"operator.{name}": getattr(operator, name) for name in (
        "add", "sub", "mul", "floordiv", "mod", "truediv", "pow", "neg",
        "lt", "le", "gt", "ge", "eq", "ne", "and_", "or_", "xor", "not_",
    )},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
    **{f"builtins.{value.__name__}": value for value in (float, max, min)},
}  # fmt: skip
_OF_TORCH = (torch.dtype, torch.layout, torch.memory_format)


class Program:
    """What a packed network runs for inputs of one size, or of all sizes that meet conditions.

    Args:
        module: Computes tensors from tensors.
        tensors: Which of the flattened arguments it takes.
        spec: Structure of the result.
        others: Per flattened result, ``None`` for a tensor, or a 1-tuple of its constant value.
        conditions: For a general program: computes a list of truth values from the same tensors;
            the program is valid if all are true.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        tensors: Sequence[int],
        spec: TreeSpec,
        others: Sequence[tuple[Any] | None],
        conditions: fx.GraphModule | None = None,
    ) -> None:
        self.module = module
        self.conditions = conditions
        self.tensors = tensors
        self.spec = spec
        self.others = others

    def __call__(self, leaves: Sequence[Any]) -> Any:
        """Run the program on flattened arguments."""
        results = iter(self.module(*(leaves[i] for i in self.tensors)))
        filled = [next(results) if other is None else other[0] for other in self.others]
        return tree_unflatten(filled, self.spec)

    def fits(self, leaves: Sequence[Any]) -> bool:
        """Check whether a general program is valid for flattened arguments of its form."""
        assert self.conditions is not None
        return all(self.conditions(*(leaves[i] for i in self.tensors)))


def program_key(leaves: Sequence[Any], spec: TreeSpec) -> Hashable:
    """Return what a program depends on: structure, sizes and dtypes of arguments, autocast."""
    shapes = tuple(
        (x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else (type(x), x)
        for x in leaves
    )
    return spec, shapes, autocast_state()


def autocast_state() -> tuple[bool, torch.dtype]:
    """Whether autocast is enabled, and its type."""
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")


class PackedPrograms(nn.Module):
    """The programs of a packed network without the network, as stored in a file.

    Called like the network, with arguments of sizes that there are programs for.

    Args:
        programs: Programs for one size, by what they depend on, see :func:`program_key`.
        general: General programs with their forms, see :func:`binarize.lower.symbolic_sizes.form`.

    Raises:
        ModelError: There is no program for these sizes.
    """

    def __init__(
        self,
        programs: Mapping[Any, Program],
        general: Sequence[tuple[Any, Program]] = (),
    ) -> None:
        super().__init__()
        self.training = False
        self.programs: dict[Any, Program] = dict(programs)
        self.general = list(general)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program for these arguments."""
        with torch.no_grad():
            program, leaves = self.find(*tree_flatten((args, kwargs)))
            return program(leaves)

    def find(self, leaves: Sequence[Any], spec: TreeSpec) -> tuple[Program, Sequence[Any]]:
        """Return the program for flattened arguments, and the arguments in its memory order.

        Raises:
            ModelError: There is no program for these sizes.
        """
        key: Any = program_key(leaves, spec)
        if key in self.programs:
            return self.programs[key], leaves
        wanted = _without_strides(key)
        for known, program in self.programs.items():
            if _without_strides(known) == wanted:
                strides = [x[1] if _is_tensor(x) else None for x in known[1]]
                return program, _in_order(leaves, strides)
        for known, program in self.general:
            ordered = _in_form(leaves, known)
            found = form(ordered, key[0], key[2]) if ordered else None
            if found == known and program.fits(ordered):
                return program, ordered
        given = ", ".join(_size(x) for x in leaves if isinstance(x, Tensor))
        raise ModelError(
            "input",
            given,
            f"this file holds programs for {'; '.join(self.sizes)}",
            "pack the network, call it with such an input, and save it again",
        )

    @property
    def sizes(self) -> list[str]:
        """Sizes and dtypes of the arguments, one text per program."""
        shapes = [[(x[0], x[2]) for x in leaves if _is_tensor(x)] for _, leaves, _ in self.programs]
        shapes += [
            [(_lettered(x[0]), x[2]) for x in leaves if len(x) == 4]
            for (_, leaves, _), _ in self.general
        ]
        return list(dict.fromkeys(", ".join(_text(*each) for each in one) for one in shapes))

    def train(self, mode: bool = True) -> PackedPrograms:
        """Reject training mode."""
        if mode:
            raise ModelError(
                "model", "PackedPrograms", "it is for inference", "train the original network"
            )
        return self

    def extra_repr(self) -> str:
        return "\n".join(self.sizes)


def _is_tensor(shape: Any) -> bool:
    return isinstance(shape[0], torch.Size)


def _without_strides(key: Any) -> Hashable:
    spec, shapes, autocast = key
    return spec, tuple((x[0], *x[2:]) if _is_tensor(x) else x for x in shapes), autocast


def _in_order(leaves: Sequence[Any], strides: Sequence[Any]) -> list[Any]:
    """Return the arguments with these strides, copying tensors that have others."""
    return [
        x if s is None or x.stride() == s
        else torch.empty_strided(x.shape, s, dtype=x.dtype, device=x.device).copy_(x)
        for x, s in zip(leaves, strides, strict=True)
    ]  # fmt: skip


def _in_form(leaves: Sequence[Any], known: Any) -> list[Any]:
    """Return the arguments in a form's memory order; empty if they do not match it."""
    forms = known[1]
    if len(forms) != len(leaves):
        return []
    strides: list[Any] = []
    for x, leaf in zip(leaves, forms, strict=True):
        if isinstance(x, Tensor) != (len(leaf) == 4):
            return []
        if isinstance(x, Tensor):
            if x.dim() != len(leaf[1]):
                return []
            strides.append(strides_of(x.shape, leaf[1]))
        else:
            strides.append(None)
    return _in_order(leaves, strides)


def _lettered(sizes: Sequence[int | None]) -> list[Any]:
    spatial = {1: "L", 2: "HW", 3: "DHW"}.get(len(sizes) - 2, "?" * len(sizes))
    letters = ["N", "C", *spatial]
    return [letters[d] if n is None else n for d, n in enumerate(sizes)]


def _size(x: Tensor) -> str:
    return _text(x.shape, x.dtype)


def _text(sizes: Sequence[Any], dtype: torch.dtype) -> str:
    return f"{'x'.join(map(str, sizes))} {str(dtype).removeprefix('torch.')}"


# Stored form


def to_data(key: Any, program: Program, names: Mapping[int, str]) -> dict[str, Any]:
    """Convert a program to JSON-serializable data.

    Args:
        key: What it depends on.
        program: The program.
        names: Names of its constants, by ``id``.

    Raises:
        ModelError: It has arguments that JSON cannot represent.
    """
    spec, leaves, _ = key
    try:
        structure = treespec_dumps(spec), treespec_dumps(program.spec)
    except Exception as error:
        raise _unsayable(f"{type(error).__name__}: {error}") from error
    data = {
        "nodes": _nodes(program.module, names),
        "given": [_leaf_to_data(leaf) for leaf in leaves],
        "structure": structure,
        "tensors": list(program.tensors),
        "others": [None if other is None else [_encode(other[0])] for other in program.others],
    }
    if program.conditions is not None:
        data["conditions"] = _nodes(program.conditions, {})
    return data


def from_data(data: Mapping[str, Any], constants: Mapping[str, Tensor]) -> tuple[Hashable, Program]:
    """Undo :func:`to_data`.

    Args:
        data: What it returned.
        constants: The constants, by name.

    Returns:
        What the program depends on, and the program.

    Raises:
        Exception: The data is not from :func:`to_data`.
    """
    into, out = map(treespec_loads, data["structure"])
    others = [None if other is None else (_decode(other[0], {}),) for other in data["others"]]
    conditions = _module(data["conditions"], {}) if "conditions" in data else None
    module = _module(data["nodes"], constants)
    program = Program(module, data["tensors"], out, others, conditions)
    leaves = tuple(_leaf_from_data(leaf) for leaf in data["given"])
    return (into, leaves, (False, torch.get_autocast_dtype("cpu"))), program


def _leaf_to_data(leaf: Any) -> dict[str, Any]:
    if len(leaf) == 2:
        return {"value": _encode(leaf[1])}
    order = "stride" if _is_tensor(leaf) else "order"
    sizes, steps, kind, device = leaf
    return {"shape": list(sizes), order: list(steps), "type": _encode(kind), "on": str(device)}


def _leaf_from_data(leaf: Mapping[str, Any]) -> tuple[Any, ...]:
    if "value" in leaf:
        value = _decode(leaf["value"], {})
        return type(value), value
    rest = _decode(leaf["type"], {}), torch.device(leaf["on"])
    if "order" in leaf:
        return tuple(leaf["shape"]), tuple(leaf["order"]), *rest
    return torch.Size(leaf["shape"]), tuple(leaf["stride"]), *rest


def _nodes(module: fx.GraphModule, names: Mapping[int, str]) -> list[Any]:
    nodes = []
    for node in module.graph.nodes:
        target: Any = node.target
        if node.op == "get_attr":
            target = names[id(getattr(module, target))]
        elif node.op == "call_function":
            known = [name for name, value in _NAMED.items() if value is target]
            target = known[0] if known else str(target)
            _operator(target)
        nodes.append([node.op, node.name, str(target), _encode(node.args), _encode(node.kwargs)])
    return nodes


def _module(nodes: Sequence[Any], constants: Mapping[str, Tensor]) -> fx.GraphModule:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    used = {}
    for op, name, target, args, kwargs in nodes:
        called: Any = _operator(target) if op == "call_function" else target
        if op == "get_attr":
            used[target] = constants[target]
        made[name] = graph.create_node(op, called, _decode(args, made), _decode(kwargs, made), name)
    return fx.GraphModule(used, graph)


def _operator(name: str) -> Any:
    """Return an operator by name; no other code can be named."""
    if name in _NAMED:
        return _NAMED[name]
    space, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if space not in ("aten", "binarize"):
        raise _unsayable(f"it calls {name}")
    return getattr(getattr(getattr(torch.ops, space), packet), overload)


def _encode(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, _OF_TORCH):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if isinstance(value, list | tuple):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": {str(k): _encode(v) for k, v in value.items()}}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise _unsayable(f"it reads a {type(value).__name__}")


def _decode(value: Any, made: Mapping[str, fx.Node]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "node":
        return made[inner]
    if kind == "torch":
        found = getattr(torch, inner)
        if not isinstance(found, _OF_TORCH):
            raise ValueError(f"torch.{inner}")
        return found
    if kind == "device":
        return torch.device(inner)
    if kind == "dict":
        return {k: _decode(v, made) for k, v in inner.items()}
    items = [_decode(v, made) for v in inner]
    return tuple(items) if kind == "tuple" else items


def _unsayable(what: str) -> ModelError:
    return ModelError(
        "model",
        "PackedNetwork",
        f"its program cannot be stored ({what[:120]})",
        "save the 1-bit network that it was packed from",
    )
