"""Exported networks, and their run-time sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import binarize
from binarize.nn import BinaryLayer, ShiftedPReLU
from binarize.runtime import Session


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small feature maps gain nothing from threads, and the tests share their machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


_RANGES = {"a": (-0.3, 0.3), "b": (-0.3, 0.3), "k": (0.5, 1.5)}


def train_like(network: nn.Module) -> nn.Module:
    """Put numbers into everything that starts at 0 or 1; in eval mode."""
    with torch.no_grad():
        for module in network.modules():
            part: Any = module
            if isinstance(module, BinaryLayer):
                for name, (low, high) in _RANGES.items():
                    if isinstance(getattr(part.binarizer, name, None), nn.Parameter):
                        getattr(part.binarizer, name).uniform_(low, high)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                part.running_mean.normal_(std=0.3)
                part.running_var.uniform_(0.5, 2)
            if isinstance(module, ShiftedPReLU):
                for value in module.parameters():
                    value.uniform_(-0.3, 0.3)
    return network.eval()


@pytest.fixture(scope="session")
def export() -> Callable[..., Any]:
    """Convert, pack and export a network; returns the packed network."""

    def run(network: nn.Module, inputs: Any, path: Path, **options: Any) -> Any:
        policy = options.pop("policy", "bidense")
        student = train_like(binarize.convert(network, policy, example_inputs=inputs))
        packed = binarize.pack(student)
        binarize.export_onnx(packed, path, inputs, runtime="binarize", **options)
        return packed

    return run


@pytest.fixture
def exported(export: Any, tmp_path: Path) -> Callable[..., tuple[Any, Session]]:
    """The same, with a session on the file."""

    def run(network: nn.Module, inputs: Any, **options: Any) -> tuple[Any, Session]:
        path = tmp_path / "network.onnx"
        return export(network, inputs, path, **options), Session(path, threads=1)

    return run
