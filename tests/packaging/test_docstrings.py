"""Every public name says what it is; a method may inherit that from the class it overrides."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

import binarize

ROOT = Path(binarize.__file__).parent
MODULES = [
    ".".join(("binarize", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in sorted(ROOT.rglob("*.py"))
    if path.name == "__init__.py" or not path.name.startswith("_")
]


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    bare = []
    for public in getattr(module, "__all__", []):
        thing = getattr(module, public)
        if inspect.isfunction(thing) and not inspect.getdoc(thing):
            bare.append(public)
        elif inspect.isclass(thing) and thing.__module__ == name:
            if not thing.__doc__:
                bare.append(public)
            for method, body in vars(thing).items():
                open_to_all = not method.startswith("_") and inspect.isfunction(body)
                if open_to_all and not inspect.getdoc(getattr(thing, method)):
                    bare.append(f"{public}.{method}")
    assert not bare, f"{name}: no docstring on {', '.join(bare)}"
