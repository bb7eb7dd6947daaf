"""Run the command line in this process, on networks that train in a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from binarize.cli import main

SMALL = ("--model", "demo:UNet", "--model-arg", "widths=[8,16]")
SCENES = ("--data", "scenes", "--count", "8", "--size", "32x24", "--batch-size", "4")


@dataclass(frozen=True)
class Answer:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Answer]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def call(*words: object) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as left:  # argparse leaves by itself
        return int(left.code or 0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in this process."""

    def run(*words: object) -> Answer:
        capsys.readouterr()
        code = call(*words)
        streams = capsys.readouterr()
        return Answer(code, streams.out, streams.err)

    return run


@pytest.fixture(scope="session")
def float_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a float network's training."""
    folder = tmp_path_factory.mktemp("float")
    assert call("train", *SMALL, *SCENES, "--policy", "none", "--epochs", 2, "--output", folder,
                "--quiet") == 0  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def binary_run(float_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the training of its 1-bit twin, with the float network as the teacher."""
    folder = tmp_path_factory.mktemp("binary")
    start = float_run / "float.safetensors"
    assert call("train", *SMALL, *SCENES, "--epochs", 1, "--output", folder, "--init", start,
                "--teacher", start, "--distill", "trust=all", "--quiet") == 0  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def depth_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a depth network's training."""
    folder = tmp_path_factory.mktemp("depth")
    assert call("train", *SMALL, *SCENES, "--task", "depth", "--epochs", 1, "--output", folder,
                "--quiet") == 0  # fmt: skip
    return folder
