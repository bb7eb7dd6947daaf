"""What a network of the command line is called with: as asked for, or as its file says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from binarize.cli.networks import Recipe, example_of
from binarize.errors import BinarizeError, ModelError

__all__ = ["example_for", "example_image", "shell_remedies"]

_REMEDY = (
    "for other inputs than one image, define example_inputs() beside the factory in its file: it "
    "returns a tensor, a tuple of them, or a dict by the names of the arguments"
)


def example_for(network: Any, recipe: Recipe | None, size: tuple[int, ...] | None) -> Any:
    """Example inputs of a network; None leaves it to be found out.

    Args:
        network: The network.
        recipe: How it is built. If by a user's file that has ``example_inputs`` beside the
            factory, these are taken; ``size`` is handed to it if it has such an argument.
        size: Extent of one image, (rows, columns) or (depth, rows, columns).

    Raises:
        BinarizeError: The size does not belong to the network, or the file's function fails.
    """
    given = None if recipe is None else example_of(recipe, size)
    if given is not None:
        return given
    image = example_image(network, size)
    if image is not None:
        _check_arguments(network)
    return image


def example_image(network: Any, size: tuple[int, ...] | None) -> Any:
    """An image of the size asked for, with as many channels as the first convolution reads.

    Raises:
        BinarizeError: The size is not positive, or has other dimensions than the convolutions.
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
    """Refuse a network that takes more than one image, by what its forward asks for."""
    import inspect

    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p.name for p in parameters if p.kind in kinds and p.default is p.empty]
    if len(needed) > 1:
        raise ModelError(
            "size", f"{len(needed)} inputs ({', '.join(needed)})", "is of one image only", _REMEDY
        )


@contextmanager
def shell_remedies(model: str) -> Iterator[None]:
    """Let errors about example inputs speak of what the command line has."""
    try:
        yield
    except ModelError as error:
        if error.argument != "example_inputs":
            raise
        raise ModelError("model", model, error.rule, f"give --size; {_REMEDY}") from error
