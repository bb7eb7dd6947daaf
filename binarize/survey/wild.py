"""Networks from user files, surveyed like those of the libraries."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import FileError, ModelError
from binarize.survey.case import WILD, Case

__all__ = ["build_wild", "import_file", "wild_cases"]

_CONVS = (nn.modules.conv._ConvNd,)
_EXAMPLE = "example_inputs"


def wild_cases(place: Path) -> list[Case]:
    """List the factories in a folder of Python files without running them.

    A factory is a function without arguments that is named ``make...`` or annotated to
    return a ``Module``; in files without one, a class derived from a ``Module``. A function or
    value ``example_inputs`` in the file gives the image, or a tuple of images of one size.

    Args:
        place: A folder, searched recursively, a file, or ``FILE.py:NAME``.

    Raises:
        FileError: It does not exist, or has no factory.
    """
    head, _, factory = str(place).rpartition(":")
    if head.endswith(".py"):
        files, place = [Path(head)], Path(head)
    else:
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    if not place.exists() or (not place.is_dir() and place.suffix != ".py"):
        raise FileError(
            "wild",
            str(place),
            "is neither a folder nor a Python file",
            "give FOLDER or FILE.py:NAME",
        )
    cases = []
    for file in files:
        family = file.relative_to(place).as_posix() if place.is_dir() else file.name
        for name in [factory] if head.endswith(".py") else _factories(file):
            cases.append(Case(WILD, family, f"{file.as_posix()}:{name}", sample=True))
    if not cases:
        raise FileError(
            "wild",
            str(place),
            "has no factory: a function make...() without arguments, or one that returns a Module",
            "add one, or name it: FILE.py:NAME",
        )
    return cases


def _factories(file: Path) -> list[str]:
    try:
        body = ast.parse(file.read_bytes()).body
    except (SyntaxError, ValueError):
        return [""]  # building it will report the error
    functions = [
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef)
        and _takes_nothing(node.args)
        and (node.name.startswith("make") or _is_module(node.returns))
    ]
    functions += [
        target.id
        for node in body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Lambda | ast.Call)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.startswith("make")
    ]
    if functions:
        return functions
    return [
        node.name
        for node in body
        if isinstance(node, ast.ClassDef)
        and any(_is_module(base) for base in node.bases)
        and all(_takes_nothing(f.args, skip=1) for f in _constructors(node))
    ]


def _constructors(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            yield item


def _takes_nothing(args: ast.arguments, skip: int = 0) -> bool:
    positional = len(args.posonlyargs) + len(args.args) - skip
    return positional <= len(args.defaults) and None not in args.kw_defaults


def _is_module(node: ast.expr | None) -> bool:
    return node is not None and ast.unparse(node).strip("'\"").split(".")[-1] == "Module"


def import_file(file: Path) -> ModuleType:
    """Run a Python file as a module that can import its neighbours.

    Raises:
        Exception: Whatever the file raises.
    """
    spec = importlib.util.spec_from_file_location(f"binarize_user_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(file.resolve().parent))
    return module


def build_wild(case: Case) -> nn.Module:
    """Build a network; several inputs are concatenated to one along the channels.

    Its attribute ``pretrained_cfg`` holds the image shape, as in timm.

    Raises:
        Exception: Whatever the file or the factory raises.
    """
    file, _, factory = case.name.rpartition(":")
    module = import_file(Path(file))
    make = getattr(module, factory, None)
    if not callable(make):
        raise ModelError("wild", case.name, f"has no {factory!r}", "correct the name")
    model = make()
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ModelError(
            "wild", case.name, f"returned a {kind}, not a Module", "return the network"
        )
    example = getattr(module, _EXAMPLE, None)
    if example is not None:
        return _with_example(case, model, example() if callable(example) else example)
    first = next((m for m in model.modules() if isinstance(m, _CONVS)), None)
    if first is not None and not hasattr(model, "pretrained_cfg"):
        side = {1: 1024, 2: 224, 3: 48}[len(first.kernel_size)]
        shape = (first.in_channels, *[side] * len(first.kernel_size))
        model.pretrained_cfg = {"input_size": shape}  # type: ignore[assignment]
    return model


def _with_example(case: Case, model: nn.Module, example: Any) -> nn.Module:
    images: Sequence[Any] = [example] if isinstance(example, Tensor) else example
    if not isinstance(images, list | tuple) or not all(isinstance(x, Tensor) for x in images):
        raise ModelError(
            "wild",
            case.name,
            f"{_EXAMPLE} returned no tensors",
            "return a tensor or a tuple of them",
        )
    if len({x.shape[2:] for x in images}) != 1:
        raise ModelError(
            "wild",
            case.name,
            f"{_EXAMPLE} returned images of several sizes",
            "return images of one size",
        )
    channels = [x.shape[1] for x in images]
    if len(images) > 1:
        model = _OneInput(model, channels)
    model.pretrained_cfg = {  # type: ignore[assignment]
        "input_size": (sum(channels), *images[0].shape[2:])
    }
    return model


class _OneInput(nn.Module):
    """A network with several image inputs, called with one image of all their channels."""

    def __init__(self, network: nn.Module, channels: Sequence[int]) -> None:
        super().__init__()
        self.network, self.channels = network, list(channels)

    def forward(self, images: Tensor) -> Any:
        return self.network(*torch.split(images, self.channels, 1))
