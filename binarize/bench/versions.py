"""The versions of a network to compare, by name."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from binarize.file import float_contents, network_contents
from binarize.lower import export_onnx

__all__ = ["VERSIONS", "Subject", "Version"]


class Subject:
    """The forms of a network from which versions are built, each created on first use.

    Args:
        network: Creates the float network.
        student: Creates the 1-bit network, in eval mode.
        packed: Creates the packed network.

    Attributes:
        exported_bytes: Size of the file that "ort-packed" ran; 0 before its first call.
    """

    def __init__(
        self,
        network: Callable[[], nn.Module],
        student: Callable[[], nn.Module],
        packed: Callable[[], nn.Module],
    ) -> None:
        self._network = network
        self._student = student
        self._packed = packed
        self.exported_bytes = 0

    @cached_property
    def network(self) -> nn.Module:
        """The float network in eval mode, in the fastest memory format on a CPU."""
        network: Any = self._network().eval()
        for tensor in (*network.parameters(), *network.buffers()):
            if (
                tensor.dim() == 4
            ):  # for other dimensions torch has no such format, or a different one
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        fast: nn.Module = network
        return fast

    @cached_property
    def student(self) -> nn.Module:
        """The 1-bit network."""
        return self._student()

    @cached_property
    def packed(self) -> nn.Module:
        """The packed network."""
        return self._packed()


@dataclass(frozen=True)
class Version:
    """One way to run a network.

    Attributes:
        summary: A short description.
        make: Builds from the subject a function of the network's inputs, float32.
        file_bytes: Returns the size of the file that it is loaded from; called after a first run.
        asked: Measured only if requested by name.
    """

    summary: str
    make: Callable[[Subject], Callable[..., Any]]
    file_bytes: Callable[[Subject], int]
    asked: bool = False


def _float_bytes(subject: Subject) -> int:
    return float_contents(subject.network).size


def _half(subject: Subject) -> nn.Module:
    return copy.deepcopy(subject.network).to(torch.bfloat16)


def _bf16(subject: Subject) -> Callable[..., Any]:
    network = _half(subject)

    def call(*args: Any, **kwargs: Any) -> Any:
        half, named = tree_map_only(Tensor, _to_half, (args, kwargs))
        return network(*half, **named)

    return call


def _to_half(value: Tensor) -> Tensor:
    return value.to(torch.bfloat16) if value.is_floating_point() else value


def _packed_bytes(subject: Subject) -> int:
    student: Any = subject.student
    return network_contents(student, student.binarize_plan).size


def _in_onnxruntime(subject: Subject) -> Callable[..., Any]:
    """The packed network in ONNX Runtime, exported in its first call for those inputs."""
    sessions: list[Any] = []

    def call(*args: Any, **kwargs: Any) -> Any:
        if not sessions:
            from binarize.runtime import Session

            with (
                tempfile.TemporaryDirectory() as folder,
                warnings.catch_warnings(),
                torch.inference_mode(False),
            ):
                warnings.simplefilter("ignore")  # about the exporter's future changes
                path = Path(folder) / "network.onnx"
                export_onnx(subject.packed, path, kwargs or args, runtime="binarize")
                sessions.append(Session(path, threads=torch.get_num_threads()))
                subject.exported_bytes = path.stat().st_size
        given, named = tree_map_only(Tensor, lambda x: x.contiguous().numpy(), (args, kwargs))
        return tree_map_only(np.ndarray, torch.from_numpy, sessions[0](*given, **named))

    return call


VERSIONS: dict[str, Version] = {
    "float": Version("float32", lambda subject: subject.network, _float_bytes),
    "compiled": Version(
        "float32, torch.compile", lambda subject: torch.compile(subject.network), _float_bytes
    ),
    "bf16": Version(
        "weights and activations bfloat16",
        _bf16,
        lambda subject: float_contents(_half(subject)).size,
    ),
    "packed": Version("1-bit, binarize.pack", lambda subject: subject.packed, _packed_bytes),
    "ort-packed": Version(
        "1-bit, ONNX Runtime", _in_onnxruntime, lambda subject: subject.exported_bytes, asked=True
    ),
}
