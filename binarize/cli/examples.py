"""Example inputs of the command line's networks, from options or from the network's file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from binarize.cli.networks import Recipe, example_of
from binarize.errors import BinarizeError, ModelError

__all__ = ["example_for", "example_image", "shell_remedies"]

_REMEDY = (
    "for inputs other than one image, define example_inputs() next to the factory in its file, to "
    "return a tensor, a tuple of tensors, or a dict by argument name"
)


def example_for(network: Any, recipe: Recipe | None, size: tuple[int, ...] | None) -> Any:
    """Return example inputs of a network; None means that they must be found.

    Args:
        network: The network.
        recipe: How it is built. If a user's file has ``example_inputs`` next to the factory, these
            are used; ``size`` is passed to it if it has such an argument.
        size: Extent of one image, (rows, columns) or (depth, rows, columns).

    Raises:
        BinarizeError: The size does not fit the network, or the file's function fails.
    """
    given = None if recipe is None else example_of(recipe, size)
    if given is not None:
        return given
    image = example_image(network, size)
    if image is not None:
        _check_arguments(network)
    return image


def example_image(network: Any, size: tuple[int, ...] | None) -> Any:
    """Return an image of the requested size, with the first convolution's input channels.

    Raises:
        BinarizeError: The size is not positive, or its dimensions differ from the convolutions'.
    """
    if size is None:
        return None
    import torch

    shown = "x".join(str(n) for n in reversed(size))
    if min(size) < 1:
        raise BinarizeError("size", shown, "must be positive", "give e.g. 224x224")
    found = [
        (module.in_channels, len(module.kernel_size))
        for module in network.modules()
        if isinstance(getattr(module, "kernel_size", None), tuple)
        and isinstance(getattr(module, "in_channels", None), int)
    ]
    channels = next((count for count, dims in found if dims == len(size)), None)
    if channels is None and found:
        dims = found[0][1]
        form = {1: "no size, but example_inputs() in its file", 2: "WxH", 3: "WxHxD"}
        raise BinarizeError(
            "size",
            shown,
            f"the network's convolutions have {dims} dimension{'s' if dims > 1 else ''}",
            f"give {form.get(dims, 'another size')}",
        )
    return torch.zeros(1, 3 if channels is None else channels, *size)


def _check_arguments(network: Any) -> None:
    """Reject a network whose forward takes more than one image."""
    import inspect

    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.kind in kinds and p.default is p.empty]
    if len(needed) > 1:
        raise ModelError(
            "size", f"{len(needed)} inputs ({', '.join(needed)})", "is for one image only", _REMEDY
        )


@contextmanager
def shell_remedies(model: str) -> Iterator[None]:
    """Reword errors about example inputs in terms of command-line options."""
    try:
        yield
    except ModelError as error:
        if error.argument != "example_inputs":
            raise
        raise ModelError("model", model, error.rule, f"give --size; {_REMEDY}") from error
