"""Programs: what a packed network runs for inputs of one size, and their stored form."""

from __future__ import annotations

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

__all__ = ["PackedPrograms", "Program", "from_data", "program_key", "to_data"]

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_NAMED: dict[str, Any] = {
    "getitem": operator.getitem,
    "binarize.unit": run_unit,
    "convolve_points": conv1x1,  # the name that stored programs use
    "empty": memory.empty,
}
_OF_TORCH = (torch.dtype, torch.layout, torch.memory_format)


class Program:
    """What a packed network runs for inputs of one size.

    Args:
        module: Computes tensors from tensors.
        tensors: Which of the flattened arguments it takes.
        spec: Structure of the result.
        others: Per flattened result, ``None`` for a tensor, or a 1-tuple of its constant value.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        tensors: Sequence[int],
        spec: TreeSpec,
        others: Sequence[tuple[Any] | None],
    ) -> None:
        self.module = module
        self.tensors = tensors
        self.spec = spec
        self.others = others

    def __call__(self, leaves: Sequence[Any]) -> Any:
        """Run the program on flattened arguments."""
        results = iter(self.module(*(leaves[i] for i in self.tensors)))
        filled = [next(results) if other is None else other[0] for other in self.others]
        return tree_unflatten(filled, self.spec)


def program_key(leaves: Sequence[Any], spec: TreeSpec) -> Hashable:
    """Return what a program depends on: structure, sizes and dtypes of arguments, autocast."""
    shapes = tuple(
        (x.shape, x.stride(), x.dtype, x.device) if isinstance(x, Tensor) else (type(x), x)
        for x in leaves
    )
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    return spec, shapes, autocast


class PackedPrograms(nn.Module):
    """The programs of a packed network without the network, as stored in a file.

    Called like the network, with arguments of sizes that there are programs for.

    Args:
        programs: The programs, by what they depend on, see :func:`program_key`.

    Raises:
        ModelError: There is no program for these sizes.
    """

    def __init__(self, programs: Mapping[Any, Program]) -> None:
        super().__init__()
        self.training = False
        self.programs: dict[Any, Program] = dict(programs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program for these arguments."""
        leaves, spec = tree_flatten((args, kwargs))
        key = program_key(leaves, spec)
        program = self.programs.get(key)
        with torch.no_grad():
            return self._find(key, leaves) if program is None else program(leaves)

    def _find(self, key: Any, leaves: Sequence[Any]) -> Any:
        """Run a program for arguments in another memory order, copying them."""
        wanted = _without_strides(key)
        for known, program in self.programs.items():
            if _without_strides(known) == wanted:
                shapes = known[1]
                return program(
                    [
                        torch.empty_strided(s[0], s[1], dtype=s[2], device=s[3]).copy_(x)
                        if isinstance(x, Tensor)
                        else x
                        for x, s in zip(leaves, shapes, strict=True)
                    ]
                )
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
        shells = [
            [torch.empty(x[0], dtype=x[2], device="meta") for x in shapes if _is_tensor(x)]
            for _, shapes, _ in self.programs
        ]
        return list(dict.fromkeys(", ".join(map(_size, each)) for each in shells))

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


def _size(x: Tensor) -> str:
    return f"{'x'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}"


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
    spec, shapes, _ = key
    nodes = []
    for node in program.module.graph.nodes:
        target: Any = node.target
        if node.op == "get_attr":
            target = names[id(getattr(program.module, target))]
        elif node.op == "call_function":
            known = [name for name, value in _NAMED.items() if value is target]
            target = known[0] if known else str(target)
            _operator(target)
        nodes.append([node.op, node.name, str(target), _encode(node.args), _encode(node.kwargs)])
    leaves = [
        {"shape": list(x[0]), "stride": list(x[1]), "type": _encode(x[2]), "on": str(x[3])}
        if _is_tensor(x)
        else {"value": _encode(x[1])}
        for x in shapes
    ]
    try:
        structure = treespec_dumps(spec), treespec_dumps(program.spec)
    except Exception as error:
        raise _unsayable(f"{type(error).__name__}: {error}") from error
    return {
        "nodes": nodes,
        "given": leaves,
        "structure": structure,
        "tensors": list(program.tensors),
        "others": [None if other is None else [_encode(other[0])] for other in program.others],
    }


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
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    used = {}
    for op, name, target, args, kwargs in data["nodes"]:
        called: Any = _operator(target) if op == "call_function" else target
        if op == "get_attr":
            used[target] = constants[target]
        made[name] = graph.create_node(op, called, _decode(args, made), _decode(kwargs, made), name)
    into, out = map(treespec_loads, data["structure"])
    others = [None if other is None else (_decode(other[0], {}),) for other in data["others"]]
    program = Program(fx.GraphModule(used, graph), data["tensors"], out, others)
    shapes: list[Any] = []
    for leaf in data["given"]:
        if "shape" in leaf:
            sizes = torch.Size(leaf["shape"]), tuple(leaf["stride"])
            shapes.append((*sizes, _decode(leaf["type"], {}), torch.device(leaf["on"])))
        else:
            value = _decode(leaf["value"], {})
            shapes.append((type(value), value))
    return (into, tuple(shapes), (False, torch.get_autocast_dtype("cpu"))), program


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
