"""Files to deploy: packed programs and ONNX. They are run as they are, of the sizes they have."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import FileError, ModelError
from binarize.file.contents import DESCRIPTION
from binarize.lower import PackedPrograms

__all__ = ["OnnxNetwork", "ProgramNetwork", "deployed_kind", "open_deployed"]

_PROGRAMS = "binarize-programs"


def deployed_kind(path: Path) -> str | None:
    """Return "programs" or "onnx", by the file's content; None for all other files."""
    from binarize.cli.weights import file_kind, read_header

    kind = file_kind(path) if path.is_file() else None
    if kind == "onnx":
        return kind
    if kind == "safetensors" and read_header(path, "file").get("format") == _PROGRAMS:
        return "programs"
    return None


class ProgramNetwork(nn.Module):
    """Packed programs, with what their arguments are.

    Attributes:
        fixed: They take no other size.
        example_shapes: Shapes of the arguments of the first program.
    """

    fixed = True

    def __init__(self, programs: PackedPrograms) -> None:
        super().__init__()
        self.programs = programs
        self.training = False
        first = next(iter(programs.programs))
        self.example_shapes = tuple(tuple(x[0]) for x in first[1] if isinstance(x[0], torch.Size))

    def train(self, mode: bool = True) -> ProgramNetwork:
        """Stay in evaluation mode: there is no other."""
        if mode:
            self.programs.train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program of these arguments."""
        return self.programs(*args, **kwargs)


class OnnxNetwork(nn.Module):
    """A network in an ONNX file, run by ONNX Runtime on the CPU.

    Attributes:
        fixed: It takes no other size.
        example_shapes: Shapes of its inputs, 1 or a likely size where any will do.
        description: What ``binarize export`` wrote about it.

    Args:
        path: The file.

    Raises:
        ModelError: The package onnxruntime is missing.
        FileError: The file is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.training = False
        if importlib.util.find_spec("onnxruntime") is None:
            raise ModelError(
                "file", str(path), "running ONNX needs onnxruntime", "pip install onnxruntime"
            )
        import onnxruntime

        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # it warns of what our bits are folded to, at loading
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # pybind's own kinds
            raise FileError(
                "file",
                str(path),
                f"ONNX Runtime cannot load it ({' '.join(str(error).split())[:120]})",
                "export it again",
            ) from error
        inputs = self._session.get_inputs()
        self._inputs = [value.name for value in inputs]
        self._outputs = [value.name for value in self._session.get_outputs()]
        told = [value.shape for value in inputs]
        self.fixed = all(isinstance(n, int) for shape in told for n in shape)
        self.example_shapes = tuple(
            tuple(
                n if isinstance(n, int) else 1 if place == 0 else 224
                for place, n in enumerate(shape)
            )
            for shape in told
        )
        self.description = self._session.get_modelmeta().custom_metadata_map.get(DESCRIPTION)

    def train(self, mode: bool = True) -> OnnxNetwork:
        """Stay in evaluation mode: there is no other."""
        if mode:
            raise ModelError("model", "ONNX file", "it is for inference", "train the network")
        return self

    def forward(self, *args: Tensor) -> Any:
        """Run it; several outputs come as a dict by their names."""
        given = (value.detach().cpu().contiguous().numpy() for value in args)
        values = self._session.run(None, dict(zip(self._inputs, given, strict=False)))
        found = {n: torch.from_numpy(v) for n, v in zip(self._outputs, values, strict=True)}
        return next(iter(found.values())) if len(found) == 1 else found


def open_deployed(path: Path, kind: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """Open such a file.

    Args:
        path: The file.
        kind: What :func:`deployed_kind` says.

    Returns:
        The network, and what is known of it (``settings``, ``recipe``).

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
    """What a file says of its network; nothing where that is damaged."""
    try:
        return dict(json.loads(text)) if text else {}
    except (ValueError, TypeError):
        return {}
