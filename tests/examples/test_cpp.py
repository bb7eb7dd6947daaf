"""The C++ program builds, and segments as Python does."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import binarize
from binarize.runtime import Session, library

SOURCE = Path(__file__).resolve().parents[2] / "examples" / "cpp"
ROOT = os.environ.get("ONNXRUNTIME_ROOT", "")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(F.relu(self.stem(x)))))


def run(*command: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


@pytest.mark.skipif(not ROOT, reason="ONNXRUNTIME_ROOT names no release of ONNX Runtime")
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
@pytest.mark.filterwarnings("ignore")
def test_program(tmp_path: Path) -> None:
    folder = tmp_path / "build"
    for command in (
        ("cmake", "-S", SOURCE, "-B", folder, f"-DONNXRUNTIME_ROOT={ROOT}"),
        ("cmake", "--build", folder),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    network = tmp_path / "network.onnx"
    student = binarize.convert(Net()).eval()
    binarize.export_onnx(student, network, torch.randn(1, 3, 16, 16), runtime="binarize")
    image = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "image.ppm")
    program, operators = folder / "segment", library()
    done = run(program, network, operators, tmp_path / "image.ppm", tmp_path / "mask.pgm")
    assert done.returncode == 0, done.stderr
    found = np.asarray(Image.open(tmp_path / "mask.pgm"))
    assert np.array_equal(found, Session(network).segment(image))

    def told(*words: Any) -> str:
        failed = run(program, *words)
        assert failed.returncode == 1
        return failed.stderr

    assert "not a binary 8-bit PPM file" in told(network, operators, network, tmp_path / "x")
    assert "none.so" in told(network, tmp_path / "none.so", tmp_path / "image.ppm", tmp_path / "x")
    network.write_bytes(network.read_bytes()[:1000])
    assert "failed" in told(network, operators, tmp_path / "image.ppm", tmp_path / "x")
    assert not (tmp_path / "x").exists()
