"""Record the layers whose class a run checks, as in ``isinstance(layer, nn.BatchNorm2d)``.

The replacement of a layer must pass the same checks, or the forward silently takes another path.
"""

from __future__ import annotations

import inspect
import linecache
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

from torch import nn

__all__ = ["TypeChecks", "record_type_checks"]

_WORDS = ("isinstance", "type")
# Depth of the search through functions that call functions.
_DEPTH = 4


@dataclass
class TypeChecks:
    """The recorded type checks: file, line and text, by path of the module.

    Attributes:
        kinds: ``isinstance`` checks whose result would differ for an ``nn.Identity``.
        types: ``type(module)``, in code that names its class or no class.
    """

    kinds: dict[str, str] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)

    def about(self, path: str) -> str | None:
        """Return where a module's class was checked in either way, if it was."""
        return self.types.get(path, self.kinds.get(path))


@contextmanager
def record_type_checks(
    model: nn.Module, paths: Mapping[int, Sequence[str]]
) -> Iterator[TypeChecks]:
    """Record class checks in the forwards of a network and the functions that they call.

    Args:
        model: The network.
        paths: The names of its modules, by ``id``.

    Yields:
        The record, filled while the network runs.
    """
    checks = TypeChecks()

    def own_isinstance(value: Any, kinds: Any) -> bool:
        if kinds is own_type:
            kinds = type
        answer = isinstance(value, kinds)
        if id(value) in paths and answer != issubclass(nn.Identity, kinds):
            _note(checks.kinds, paths[id(value)], sys._getframe(1))
        return answer

    def own_type(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and id(args[0]) in paths and _may_compare(sys._getframe(1), args[0]):
            _note(checks.types, paths[id(args[0])], sys._getframe(1))
        return type(*args, **kwargs)

    own: dict[str, Any] = {"isinstance": own_isinstance, "type": own_type}
    changed: list[tuple[dict[str, Any], str]] = []
    try:
        for variables, word in _globals_with_checks(model):
            if word not in variables:
                # A global variable shadows the builtin of the same name.
                variables[word] = own[word]
                changed.append((variables, word))
        yield checks
    finally:
        for variables, word in changed:
            variables.pop(word, None)


def _may_compare(frame: FrameType, module: nn.Module) -> bool:
    """Check whether code that reads a type may compare it with that of a module.

    It may if it names the class (``nn.ReLU``, ``"ReLU"``), or names none.
    """
    constants = [
        x for c in frame.f_code.co_consts for x in (c if isinstance(c, tuple | frozenset) else (c,))
    ]
    words = _names(frame.f_code) | {x for x in constants if isinstance(x, str)}
    named = [
        word
        for word in words
        for known in (getattr(nn, word, None), frame.f_globals.get(word))
        if isinstance(known, type) and issubclass(known, nn.Module) and known is not nn.Module
    ]
    return not named or type(module).__name__ in named


def _note(found: dict[str, str], paths: Sequence[str], frame: FrameType) -> None:
    name, line = frame.f_code.co_filename, frame.f_lineno
    text = linecache.getline(name, line).strip()[:100]
    for path in paths:
        found.setdefault(path, f"{Path(name).name}:{line}: {text}")


def _globals_with_checks(model: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Return the globals of all functions that check classes, each with the name to replace."""
    found: dict[tuple[int, str], tuple[dict[str, Any], str]] = {}
    seen: set[CodeType] = set()
    for cls in {type(module) for module in model.modules()}:
        if cls.__module__.split(".")[0] == "torch":
            continue
        front = [_function(cls.forward)]
        for _ in range(_DEPTH):
            called = []
            for function in front:
                if function is None or function.__code__ in seen:
                    continue
                seen.add(function.__code__)
                names = _names(function.__code__)
                for word in _WORDS:
                    if word in names:
                        found[id(function.__globals__), word] = function.__globals__, word
                for name in names:
                    called.append(_function(inspect.getattr_static(cls, name, None)))
                    called.append(_function(function.__globals__.get(name)))
            front = called
    return list(found.values())


def _function(value: Any) -> FunctionType | None:
    if isinstance(value, property):
        value = value.fget
    value = inspect.unwrap(getattr(value, "__func__", value))
    ours = isinstance(value, FunctionType) and value.__module__ is not None
    return value if ours and value.__module__.split(".")[0] != "torch" else None


def _names(code: CodeType) -> set[str]:
    """Return the names that code uses, including its inner functions and comprehensions."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names
