"""Example inputs: check the user's, or find inputs that the network accepts."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter, tree_map_only

from binarize.errors import ModelError
from binarize.graph.model_input import stated
from binarize.graph.plan import Plan
from binarize.graph.trace import Trace, trace

__all__ = ["arguments", "input_shapes", "run_example"]

_SIZES = {1: (256, 1024, 4096), 2: (256, 224, 128, 384, 512, 64, 32), 3: (64, 32, 96, 128)}
# Frames, height, width of a video; other 3D networks take cubes.
_FILM = (16, 224, 224)


def run_example(model: nn.Module, example_inputs: Any = None) -> Trace:
    """Trace a network on the user's example inputs, or on an image-like input of a likely size.

    Args:
        model: The network.
        example_inputs: A tensor, a tuple or list of positional arguments, a mapping of keyword
            arguments, or ``None``. ``None`` takes a converted network's own example inputs, or the
            network's ``example_input_array`` (Lightning). For other float networks, the first
            convolution gives the number of channels; the size is the network's default (timm), or
            the first that its forward accepts.

    Returns:
        The recorded run.

    Raises:
        ModelError: The inputs do not fit the network, are integers where images are expected, are
            on another device, or no input was found.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if example_inputs is not None:
        args, kwargs = arguments(example_inputs)
        _check(args, kwargs, device)
        try:
            return trace(model, args, kwargs)
        except Exception as error:
            _check_trainer(model, error)
            raise ModelError(
                "example_inputs",
                _shapes((args, kwargs)),
                f"the network's forward does not accept them ({_short(error)})",
                "give inputs that you would call the network with",
            ) from error
    last: Exception | None = None
    for candidate in _candidates(model, device):
        try:
            args, kwargs = arguments(candidate)
            with warnings.catch_warnings():
                # The user need not see what a network warns about a guess.
                warnings.simplefilter("ignore")
                return trace(model, args, kwargs)
        except Exception as error:
            last = last or error
    if last is not None:
        _check_trainer(model, last)
    cause = _short(last) if last else "no convolution gives the number of channels"
    raise ModelError(
        "example_inputs",
        None,
        f"found no input for the network ({cause})",
        "give example_inputs=torch.zeros(...) or a tuple of the forward's arguments",
    ) from last


def _check_trainer(model: nn.Module, error: Exception) -> None:
    if "is not attached to a `Trainer`" in str(error):
        raise ModelError(
            "model",
            type(model).__name__,
            f"the forward needs Lightning's trainer, which copies do not have ({_short(error)})",
            "use self.training in it, or give the network that the LightningModule holds",
        ) from error


def input_shapes(trace: Trace) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of a run's inputs, if zeros of these shapes can replace the inputs.

    Returns:
        The shapes; () if an input is not a floating-point tensor, or is passed by keyword.
    """
    args, kwargs = trace.arguments.get("", ((), {}))
    if kwargs or not all(isinstance(x, Tensor) and x.is_floating_point() for x in args):
        return ()
    return tuple(tuple(x.shape) for x in args)


def arguments(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Split example inputs into positional and keyword arguments.

    Raises:
        ModelError: They are not a tensor, tuple, list or mapping.
    """
    if isinstance(value, Tensor):
        return (value,), {}
    if isinstance(value, Mapping):
        return (), dict(value)
    if isinstance(value, list | tuple):
        return tuple(value), {}
    raise ModelError(
        "example_inputs",
        type(value).__name__,
        "must be a tensor, a tuple or a mapping",
        "give a tensor, a tuple of arguments or a mapping of keyword arguments",
    )


def _check(args: Any, kwargs: Any, device: torch.device) -> None:
    tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
    if not tensors:
        raise ModelError(
            "example_inputs", _shapes((args, kwargs)), "it holds no tensor", "give a tensor"
        )
    for tensor in tensors:
        if tensor.device != device:
            raise ModelError(
                "example_inputs",
                str(tensor.device),
                f"the network is on {str(device)!r}",
                "move one of them with .to(device)",
            )
    if not any(tensor.is_floating_point() for tensor in tensors):
        raise ModelError(
            "example_inputs",
            str(tensors[0].dtype),
            "images must be floating point",
            "convert them: x.float() / 255",
        )


def _dtype(model: nn.Module) -> torch.dtype:
    kinds = [p.dtype for p in model.parameters() if p.is_floating_point()]
    return kinds[0] if kinds else torch.float32


def _candidates(model: nn.Module, device: torch.device) -> Iterator[Any]:
    plan = getattr(model, "binarize_plan", None)
    if isinstance(plan, Plan) and plan.example:
        yield _zeros(model, device, *plan.example)
    given = stated(model, "example_input_array")  # Lightning's
    if given is not None:
        yield tree_map_only(Tensor, lambda x: x.detach().to(device), given)
    for attribute in ("pretrained_cfg", "default_cfg"):
        config = stated(model, attribute)
        size = config.get("input_size") if isinstance(config, Mapping) else None
        if size:
            # The first convolution shows a changed in_chans, if it reads the image.
            for channels in dict.fromkeys((_channels(model) or size[0], size[0])):
                yield _zeros(model, device, (1, channels, *size[1:]))
    for module in model.modules():
        for spatial, kind in ((2, nn.Conv2d), (3, nn.Conv3d), (1, nn.Conv1d)):
            if isinstance(module, kind):
                # It may follow a stem that folds positions into channels.
                for channels in dict.fromkeys((module.in_channels, 3)):
                    for length in _SIZES[spatial]:
                        yield _zeros(model, device, (1, channels, *[length] * spatial))
                    if spatial == 3:
                        yield _zeros(model, device, (1, channels, *_FILM))
                return


def _zeros(model: nn.Module, device: torch.device, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(shape, device=device, dtype=_dtype(model)) for shape in shapes)


def _channels(model: nn.Module) -> int | None:
    convs = (m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d))
    return next(convs, None)


def _shapes(value: Any) -> str:
    parts = [
        f"{str(x.dtype).removeprefix('torch.')}{tuple(x.shape)}"
        if isinstance(x, Tensor)
        else repr(x)
        for x in tree_iter(value)
    ]
    return ", ".join(parts)


# Files whose frames say nothing about the network: torch's, and the tracer's.
_NOT_THEIRS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def _short(error: BaseException) -> str:
    """Describe an error and where it came from: the module, and the line of its code."""
    text = " ".join(str(error).split())
    root: nn.Module | None = None
    names: dict[int, str] = {}
    place = line = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            if root is None:
                root, names = module, {id(m): name for name, m in module.named_modules()}
            if id(module) in names:
                place = f"{names[id(module)] or 'the network itself'} ({type(module).__name__})"
        path = frame.f_code.co_filename
        if root is not None and not path.startswith(_NOT_THEIRS):
            line = f", {Path(path).name}:{number}"
    where = f" in {place}{line}" if place else ""
    return f"{type(error).__name__}{where}: {text[:160]}"
