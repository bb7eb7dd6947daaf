"""Build a network from a command-line specification: ``smp:Unet:resnet18``, ``timm:resnet50``..."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize.cli.parser import pair
from binarize.errors import ModelError

if TYPE_CHECKING:
    import argparse

    from torch import nn

__all__ = [
    "DEMO",
    "FORMS",
    "Recipe",
    "add_network_of_file",
    "add_network_options",
    "build",
    "example_of",
    "nearest",
    "recipe_from",
]

DEMO = "demo:UNet"
FORMS = "smp:ARCHITECTURE:ENCODER, timm:NAME or FILE.py:FACTORY"


@dataclass(frozen=True)
class Recipe:
    """How to build a network.

    Attributes:
        spec: ``smp:ARCHITECTURE:ENCODER``, ``timm:NAME`` or ``FILE.py:FACTORY``.
        classes: Number of output channels; None leaves the library's default.
        in_channels: Number of input channels.
        arguments: Further keyword arguments of the constructor.
    """

    spec: str
    classes: int | None = None
    in_channels: int = 3
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as the constructor takes it."""
        return asdict(self)


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for building a network from a specification."""
    group = parser.add_argument_group("network")
    group.add_argument("--classes", type=int, metavar="N", help="number of output channels")
    group.add_argument(
        "--in-channels", type=int, default=3, metavar="N", help="input channels (default 3)"
    )
    group.add_argument(
        "--model-arg",
        type=pair,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="argument of the network's constructor, e.g. decoder_channels=[64,48,32,24,16]",
    )


def add_network_of_file(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a file's network (``network``)."""
    parser.add_argument(
        "--model",
        dest="network",
        metavar="MODEL",
        help="the network of the file, if the file does not name it (see train)",
    )


def recipe_from(args: argparse.Namespace, spec: str, classes: int | None = None) -> Recipe:
    """Create a recipe from a specification and the options of :func:`add_network_options`."""
    return Recipe(
        spec, args.classes if classes is None else classes, args.in_channels, dict(args.model_arg)
    )


def build(recipe: Recipe) -> nn.Module:
    """Build the network, with random weights.

    Raises:
        ModelError: The specification, a name or an argument is invalid.
    """
    for name, value in (("classes", recipe.classes), ("in-channels", recipe.in_channels)):
        if value is not None and value < 1:
            raise ModelError(name, value, "must be at least 1", "correct the number")
    head, colon, rest = recipe.spec.partition(":")
    if head == "smp" and colon:
        return _smp(recipe, *rest.partition(":")[::2])
    if head == "timm" and colon:
        return _timm(recipe, rest)
    if recipe.spec == DEMO:
        return _own(recipe, Path(__file__).with_name("demo_network.py"), "UNet")
    file, colon, factory = recipe.spec.rpartition(":")
    if colon and file.endswith(".py"):
        return _own(recipe, Path(file).expanduser(), factory)
    if recipe.spec.endswith(".py"):
        raise ModelError(
            "model", recipe.spec, "names no factory", f"write {recipe.spec}:FUNCTION_OR_CLASS"
        )
    near = (
        difflib.get_close_matches(head, ("smp", "timm", "demo"), n=1, cutoff=0.5) if colon else []
    )
    hint = f"did you mean {near[0]}:{rest}?" if near else _guess(recipe.spec)
    raise ModelError("model", recipe.spec, f"must be {FORMS}", hint)


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest the names nearest to a word."""
    names = list(known)
    lower = {name.lower(): name for name in names}
    close = [lower[n] for n in difflib.get_close_matches(word.lower(), lower, n=3, cutoff=0.55)]
    if close:
        return f"did you mean {' or '.join(repr(name) for name in close)}?"
    shown = ", ".join(names[:12])
    return f"use one of {shown}" + (", ..." if len(names) > 12 else "")


def _guess(spec: str) -> str:
    """Suggest the likely meaning of a bare name: an architecture of one of the two libraries."""
    if "/" in spec or "." in spec or ":" in spec:
        return "write it in one of these forms"
    import timm

    names = timm.list_models()
    if spec in names:
        return f"write timm:{spec}"
    close = difflib.get_close_matches(spec.lower(), names, n=1, cutoff=0.7)
    return f"did you mean timm:{close[0]}?" if close else "write it in one of these forms"


def _smp(recipe: Recipe, architecture: str, encoder: str) -> nn.Module:
    import segmentation_models_pytorch as smp

    known = sorted(
        name
        for name, cls in vars(smp).items()
        if inspect.isclass(cls) and issubclass(cls, smp.base.SegmentationModel)
    )
    if architecture not in known:
        raise ModelError(
            "model", recipe.spec, f"smp has no {architecture!r}", nearest(architecture, known)
        )
    encoder = encoder or "resnet34"
    if encoder.startswith("tu-"):
        import timm

        name = encoder.removeprefix("tu-")
        if not timm.is_model(name):
            raise ModelError(
                "model", recipe.spec, f"timm has no {name!r}", nearest(name, timm.list_models())
            )
    elif encoder not in smp.encoders.get_encoder_names():
        raise ModelError(
            "model",
            recipe.spec,
            f"smp has no encoder {encoder!r}",
            nearest(encoder, smp.encoders.get_encoder_names()),
        )
    arguments = {"encoder_weights": None, "in_channels": recipe.in_channels, **recipe.arguments}
    if recipe.classes is not None:
        arguments["classes"] = recipe.classes
    return _call(recipe, getattr(smp, architecture), {"encoder_name": encoder, **arguments})


def _timm(recipe: Recipe, name: str) -> nn.Module:
    import timm

    if not timm.is_model(name.partition(".")[0]):
        raise ModelError(
            "model", recipe.spec, f"timm has no {name!r}", nearest(name, timm.list_models())
        )
    arguments: dict[str, Any] = dict(recipe.arguments)
    if recipe.classes is not None:
        arguments.setdefault("num_classes", recipe.classes)
    if recipe.in_channels != 3:
        arguments.setdefault("in_chans", recipe.in_channels)

    def create(**options: Any) -> nn.Module:
        return timm.create_model(name, pretrained=False, **options)

    return _call(recipe, create, arguments)


def example_of(recipe: Recipe, size: tuple[int, ...] | None = None) -> Any:
    """Return the ``example_inputs`` next to the factory in a user's file; None if there are none.

    Args:
        recipe: How the network is built.
        size: Passed to it if it is a function with such an argument: (rows, columns) or
            (depth, rows, columns).

    Raises:
        ModelError: It fails.
    """
    file, colon, _ = recipe.spec.rpartition(":")
    if not colon or not file.endswith(".py"):
        return None
    make = getattr(_module(recipe, Path(file).expanduser()), "example_inputs", None)
    if make is None or not callable(make):
        return make
    arguments = _known_arguments(recipe, make)
    if size is not None and "size" in _parameters(make):
        arguments["size"] = size
    try:
        return make(**arguments)
    except Exception as error:
        raise _failed(recipe, "calling example_inputs", error) from error


def _module(recipe: Recipe, file: Path) -> Any:
    if not file.is_file():
        raise ModelError("model", recipe.spec, f"no such file {file}", "check the path")
    from binarize.survey.wild import import_file

    try:
        return import_file(file)
    except Exception as error:
        raise _failed(recipe, f"importing {file.name}", error) from error


def _own(recipe: Recipe, file: Path, factory: str) -> nn.Module:
    module = _module(recipe, file)
    make = getattr(module, factory, None)
    if not callable(make):
        own = (
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        )
        raise ModelError(
            "model", recipe.spec, f"{file.name} has no {factory!r}", nearest(factory, sorted(own))
        )
    return _call(recipe, make, {**_known_arguments(recipe, make), **recipe.arguments})


def _parameters(make: Any) -> Mapping[str, Any]:
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):
        return {}


def _known_arguments(recipe: Recipe, make: Any) -> dict[str, Any]:
    """Return the number of classes and channels under a function's own argument names."""
    accepted = _parameters(make)
    arguments: dict[str, Any] = {}
    for names, value in (
        (("classes", "num_classes"), recipe.classes),
        (("in_channels", "in_chans"), recipe.in_channels),
    ):
        for name in names:
            if name in accepted and value is not None:
                arguments[name] = value
    return arguments


def _call(recipe: Recipe, make: Any, arguments: dict[str, Any]) -> nn.Module:
    from torch import nn

    try:
        network = make(**arguments)
    except Exception as error:
        raise _failed(recipe, "building it", error) from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            "model",
            recipe.spec,
            f"returned a {type(network).__name__}, not a torch.nn.Module",
            "return the network",
        )
    return network


def _failed(recipe: Recipe, doing: str, error: Exception) -> ModelError:
    text = " ".join(str(error).split())[:200]
    return ModelError(
        "model",
        recipe.spec,
        f"{doing} failed ({type(error).__name__}: {text})",
        "correct the arguments (--model-arg) or the file; --debug shows where",
    )
