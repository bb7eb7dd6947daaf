"""Builds the kernels for Windows by MinGW and runs them under wine.

Run by ``.ci/kernels --windows``: ``python .ci/windows.py ROOM CASES``. The libraries are built by
CMake as they are for users. Replayed cases link the first library; then they run on the threads of
Intel's OpenMP runtime, which torch has on Windows, and a network runs in ONNX Runtime for Windows
with the second library; pip gets both packages, 40 MB.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import binarize
from binarize.runtime import Session

ROOT = Path(__file__).resolve().parent.parent
COMPILER = "x86_64-w64-mingw32-g++"


def run(*command: Any, cwd: Path = ROOT, **environment: str) -> None:
    """Run a command that has to succeed."""
    subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**os.environ, **environment}, check=True
    )


def fetch(folder: Path, package: str, *libraries: str) -> None:
    """Put libraries of a package for Windows into a folder."""
    options = ("--no-deps", "--only-binary", ":all:", "--python-version", "3.12")
    target = folder / package
    pip = (sys.executable, "-m", "pip", "download", "-q", "--platform", "win_amd64", "-d", target)
    run(*pip, *options, package)
    for wheel in target.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.rpartition("/")[2] in libraries:
                    (folder / name.rpartition("/")[2]).write_bytes(archive.read(name))


def build(folder: Path) -> None:
    """Build both libraries, and the programs that call them."""
    run(
        *("cmake", "-S", ROOT, "-B", folder, "-DCMAKE_SYSTEM_NAME=Windows"),
        *("-DCMAKE_SYSTEM_PROCESSOR=AMD64", f"-DCMAKE_CXX_COMPILER={COMPILER}"),
    )
    run("cmake", "--build", folder, "--parallel", os.cpu_count() or 1)
    check_moves(folder / "binarize_kernels.dll")
    flags = ("-std=gnu++17", "-O1", "-static", "-I", ROOT / "binarize/kernels/csrc")
    kernels = folder / "binarize_kernels.dll"
    replay, network = folder / "replay.exe", folder / "network.exe"
    run(COMPILER, *flags, ROOT / "tests/kernels/replay.cpp", kernels, "-o", replay)
    run(COMPILER, *flags, ROOT / "tests/runtime/windows.cpp", "-o", network)


def check_moves(library: Path) -> None:
    """Look for wide registers kept on the stack by moves that need it aligned (CMakeLists.txt)."""
    objdump = COMPILER.replace("g++", "objdump")
    text = subprocess.check_output([objdump, "-d", library], text=True)
    wrong = re.findall(r"vmov(?:ap[sd]|dqa\d*)\s[^\n]*%r[sb]p\)[^\n]*%[yz]mm\d+", text)
    wrong += re.findall(r"vmov(?:ap[sd]|dqa\d*)\s[^\n]*%[yz]mm\d+[^\n]*%r[sb]p\)", text)
    assert not wrong, wrong[:5]


def export(path: Path) -> np.ndarray:
    """Export a network with dense, strided, depthwise and transposed units; return an input."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1)]
    for layer in (
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.Conv2d(64, 64, 3, padding=1, groups=64),
        nn.ConvTranspose2d(64, 24, 2, stride=2),
    ):
        channels = layer.out_channels
        layers += [layer, nn.BatchNorm2d(channels), nn.ReLU()]
    image = torch.randn(2, 3, 64, 48)
    network = nn.Sequential(*layers, nn.Conv2d(24, 5, 1)).eval()
    packed = binarize.pack(binarize.convert(network, example_inputs=image).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        binarize.export_onnx(packed, path, image, runtime="binarize")
    return image.numpy()


def main(room: str, cases: str) -> None:
    """Build and check everything in a folder of its own."""
    folder = Path(room)
    build(folder)
    # Another program's settings and windows stay out of it.
    wine = {"WINEPREFIX": str(folder / "wine"), "WINEDEBUG": "-all", "DISPLAY": ""}
    run("wine", "replay.exe", cases, cwd=folder, **wine)
    fetch(folder, "intel-openmp", "libiomp5md.dll")
    fetch(folder, "onnxruntime", "onnxruntime.dll")
    # wine does not tell which processor belongs to which memory.
    flat = {"KMP_AFFINITY": "disabled"}
    run("wine", "replay.exe", cases, "libiomp5md.dll", cwd=folder, **wine, **flat)
    image = export(folder / "network.onnx")
    (folder / "input").write_bytes(image.tobytes())
    wanted = Session(folder / "network.onnx", threads=1)(image)
    for threads in (1, 2):
        for kernels in ("", "scalar"):
            words = ("network.onnx", "input", "output", threads, *image.shape)
            run("wine", "network.exe", *words, cwd=folder, **wine, BINARIZE_KERNELS=kernels)
            found = np.fromfile(folder / "output", np.float32).reshape(wanted.shape)
            worst = float(np.abs(found - wanted).max())
            print(f"{kernels or 'fastest set'}, {threads} threads: differs by {worst:.1g} at most")
            assert worst <= 1e-4 * float(np.abs(wanted).max())
    run("wine", "wineboot", "--kill", **wine)  # nothing of it stays behind


if __name__ == "__main__":
    main(*sys.argv[1:])
