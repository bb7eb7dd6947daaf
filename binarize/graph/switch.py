"""The source of a forward that dispatches on its arguments to one of several traced forwards."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from binarize.errors import ModelError
from binarize.graph.code_paths import CodePath

__all__ = ["dispatching_forward", "refuse"]

_LITERALS = (bool, int, str, type(None))


def dispatching_forward(module: nn.Module, paths: Sequence[CodePath]) -> tuple[str, dict[str, Any]]:
    """Write a forward with the signature of the module's own.

    Args:
        module: The module.
        paths: Its code paths by argument, that of the run first.

    Returns:
        The source, and the globals that it uses.
    """
    names: dict[str, Any] = {"_refuse": refuse}
    functions: dict[str, str] = {}
    header, call = _signature(module, names)
    lines = [f"def forward({header}):"]
    for path in paths:
        lines.append(f"    if {path.condition()}:")
        if path.traced is None:
            # The argument that differs from the run's.
            first = paths[0].values
            other = next(name for name in path.values if path.values[name] != first[name])
            lines.append(f"        _refuse({other!r}, {other}, {path.cause!r})")
            continue
        chosen = []
        for graph in (path.traced.graph, path.traced.training):
            if graph is not None:
                code = graph.python_code("self")
                names |= code.globals
                chosen.append(functions.setdefault(code.src, f"_forward_{len(functions)}"))
        run = f"self.{chosen[0]}"
        if len(chosen) == 2:
            run = f"(self.{chosen[1]} if self.training else self.{chosen[0]})"
        lines.append(f"        return {run}({call})")
    cause = "its forward was not traced for this value"
    for name in paths[0].values:
        known = " or ".join(dict.fromkeys(f"({path.condition_on(name)})" for path in paths))
        lines.append(f"    if not ({known}):")
        lines.append(f"        _refuse({name!r}, {name}, {cause!r})")
    name = next(iter(paths[0].values))
    lines.append(f"    _refuse({name!r}, {name}, {cause + ' with the others'!r})")
    parts = [source.replace("def forward(", f"def {f}(", 1) for source, f in functions.items()]
    return "\n".join([*parts, *lines, ""]), names


def refuse(name: str, value: Any, cause: str) -> None:
    """Reject a value that selects a path that the rewritten forward no longer has.

    Raises:
        ModelError: Always.
    """
    raise ModelError(
        name,
        value,
        f"the rewritten forward lacks the path for this value: {cause}",
        "give this value in example_inputs when converting",
    )


def _signature(module: nn.Module, names: dict[str, Any]) -> tuple[str, str]:
    """Return the parameters of a module's forward, and the arguments for calling a traced one."""
    header = ["self"]
    call: list[str] = []
    last: list[str] = []
    before = None
    for name, parameter in inspect.signature(module.forward).parameters.items():
        kind = parameter.kind
        if before is parameter.POSITIONAL_ONLY and kind is not before:
            header.append("/")
        if kind is parameter.KEYWORD_ONLY and before not in (kind, parameter.VAR_POSITIONAL):
            header.append("*")
        stars = "*" * int(kind is parameter.VAR_POSITIONAL)
        stars += "**" * int(kind is parameter.VAR_KEYWORD)
        text = f"{stars}{name}"
        (last if stars else call).append(text)
        if parameter.default is not parameter.empty:
            value = f"_default_{name}"
            if type(parameter.default) in _LITERALS:
                value = repr(parameter.default)
            else:
                names[value] = parameter.default
            text += f"={value}"
        header.append(text)
        before = kind
    if before is inspect.Parameter.POSITIONAL_ONLY:
        header.append("/")
    return ", ".join(header), ", ".join(call + last)
