"""Deployed files, packed programs and ONNX, which run unchanged, at their own sizes."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from binarize.errors import FileError, ModelError
from binarize.file.contents import DESCRIPTION
from binarize.lower import PackedPrograms
from binarize.runtime.library import library

__all__ = ["DeployedNetwork", "OnnxNetwork", "ProgramNetwork", "deployed_kind", "open_deployed"]

_PROGRAMS = "binarize-programs"


def deployed_kind(path: Path) -> str | None:
    """Return "programs" or "onnx" by the file's content; None for other files."""
    from binarize.cli.weights import file_kind, read_header

    kind = file_kind(path) if path.is_file() else None
    if kind == "onnx":
        return kind
    if kind == "safetensors" and read_header(path, "file").get("format") == _PROGRAMS:
        return "programs"
    return None


class DeployedNetwork(nn.Module):
    """A network that runs unchanged from its file, for inference only.

    If it has a fixed batch size, other batches are split into parts, the last one padded.

    Attributes:
        fixed: It accepts only images of ``example_shapes``.
        example_shapes: Shapes of its inputs, typical ones if it accepts any.
        outputs: Names of its outputs.
    """

    fixed: bool
    fixed_batch: bool
    example_shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def train(self, mode: bool = True) -> DeployedNetwork:
        """Stay in evaluation mode, the only one."""
        if mode:
            raise ModelError("model", type(self).__name__, "it is for inference", "train another")
        return self

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run it on inputs of its own sizes."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run it on any number of images."""
        count, size = len(args[0]) if args else 0, self.example_shapes[0][0]
        if kwargs or not count or not self.fixed_batch or count == size:
            return self.run(*args, **kwargs)
        self._check(args)
        parts = []
        for start in range(0, count, size):
            taken = [value[start : start + size] for value in args]
            missing = size - len(taken[0])
            filled = [torch.cat([v, v[:1].expand(missing, *v.shape[1:])]) for v in taken]
            leaves, spec = tree_flatten(self.run(*filled))
            parts.append([v[: size - missing] if isinstance(v, Tensor) else v for v in leaves])
        whole = [
            torch.cat(values) if isinstance(values[0], Tensor) else values[0]
            for values in zip(*parts, strict=True)
        ]
        return tree_unflatten(whole, spec)

    def _check(self, args: Any) -> None:
        wanted = self.example_shapes[0][1:]
        if self.fixed and tuple(args[0].shape[1:]) != wanted:
            shown = "x".join(map(str, args[0].shape[1:]))
            raise ModelError(
                "input",
                shown,
                f"this file is for {'x'.join(map(str, wanted))}",
                "create another one",
            )


class ProgramNetwork(DeployedNetwork):
    """Packed programs.

    Args:
        programs: Result of :func:`binarize.load`.
    """

    def __init__(self, programs: PackedPrograms) -> None:
        super().__init__()
        self.programs = programs
        self.fixed = not programs.general
        # One sample and several are separate programs.
        batches = {_batch(key) for key, _ in programs.general}
        self.fixed_batch = not {1, None} <= batches
        keys = [*programs.programs, *(key for key, _ in programs.general)]
        shapes = [leaf[0] for leaf in keys[0][1] if len(leaf) == 4]
        self.example_shapes = tuple(_example(shape) for shape in shapes)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program of these arguments."""
        return self.programs(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program of these arguments, or the first size's program on parts."""
        given = tuple(tuple(x.shape) for x in args if isinstance(x, Tensor))
        known = (
            tuple(tuple(x[0]) for x in shapes if isinstance(x[0], torch.Size))
            for _, shapes, _ in self.programs.programs
        )
        return self.run(*args, **kwargs) if given in known else super().forward(*args, **kwargs)


def _example(shape: Sequence[Any]) -> tuple[int, ...]:
    """Return a typical shape: one sample, and 224 pixels, where a size is free."""
    return tuple(
        n if isinstance(n, int) else 1 if place == 0 else 224 for place, n in enumerate(shape)
    )


def _batch(form: Any) -> int | None:
    """Return the number of samples that a general program is for, None for all from two on."""
    counts: list[int | None] = [leaf[0][0] for leaf in form[1] if len(leaf) == 4 and leaf[0]]
    return counts[0] if counts else 0


class OnnxNetwork(DeployedNetwork):
    """A network in an ONNX file, run by ONNX Runtime on the CPU.

    Args:
        path: The file.

    Attributes:
        description: Its description by ``binarize export``.

    Raises:
        ModelError: The package onnxruntime is missing.
        FileError: The file is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        if importlib.util.find_spec("onnxruntime") is None:
            raise ModelError(
                "file", str(path), "running ONNX needs onnxruntime", "pip install onnxruntime"
            )
        import onnxruntime

        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with suppress(FileError):  # standard operators need no library
            options.register_custom_ops_library(str(library()))
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # pybind's own types
            raise FileError(
                "file",
                str(path),
                f"ONNX Runtime cannot load it ({' '.join(str(error).split())[:120]})",
                "export it again",
            ) from error
        inputs = self._session.get_inputs()
        self._inputs = [value.name for value in inputs]
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        shapes = [value.shape for value in inputs]
        self.fixed = all(isinstance(n, int) for shape in shapes for n in shape[1:])
        self.fixed_batch = all(isinstance(shape[0], int) for shape in shapes if shape)
        self.example_shapes = tuple(_example(shape) for shape in shapes)
        self.description = self._session.get_modelmeta().custom_metadata_map.get(DESCRIPTION)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run it; several outputs are returned as a dict by name."""
        named = {name: _array(value) for name, value in kwargs.items()}
        named |= dict(zip(self._inputs, map(_array, args), strict=False))
        values = self._session.run(None, named)
        found = {n: torch.from_numpy(v) for n, v in zip(self.outputs, values, strict=True)}
        return next(iter(found.values())) if len(found) == 1 else found


def _array(value: Tensor) -> Any:
    return value.detach().cpu().contiguous().numpy()


def open_deployed(path: Path, kind: str) -> tuple[DeployedNetwork, Mapping[str, Any]]:
    """Open a deployed file.

    Args:
        path: The file.
        kind: Result of :func:`deployed_kind`.

    Returns:
        The network and its description (``settings``, ``recipe``).

    Raises:
        FileError: It is damaged.
        ModelError: A package is missing.
    """
    if kind == "onnx":
        network = OnnxNetwork(path)
        return network, described(network.description)
    from binarize.cli.weights import read_header
    from binarize.file import load

    programs: Any = load(path)
    return ProgramNetwork(programs), described(read_header(path, "file").get(DESCRIPTION))


def described(text: str | None) -> dict[str, Any]:
    """Return a file's description of its network; empty if that is damaged."""
    try:
        return dict(json.loads(text)) if text else {}
    except (ValueError, TypeError):
        return {}
