"""Peak memory, loading time and latency of U-Net ResNet-34 at 480x480, for each way to deploy it.

    python benchmarks/memory.py [--rounds 5] [--threads 1]

Every number comes from its own process; the versions are interleaved. A process imports the
network's library, loads the network from a file and runs it on one image. Float: the network is
built and its ``state_dict`` loaded; packed: ``binarize.load(..., packed=True)`` of the 1-bit
network's file; programs: ``binarize.load`` of a file that ``binarize.save`` wrote from the packed
network, which needs only torch; ort-float: the float network in ONNX Runtime; ort-standard and
ort-packed: the 1-bit network in ONNX Runtime, with standard operators and with this package's
through ``binarize.runtime``, which does not import torch. Memory is the peak resident set as the
kernel reports it, in total and beyond the imports; "bare" is importing torch (or onnxruntime)
alone. Loading time starts after the imports; CPU time covers all cores. Latency is the median
processor time of seven runs after two warm-up runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SIDE = 480
_KINDS = ("float", "packed", "programs", "ort-float", "ort-standard", "ort-packed")


def worker(kind: str, folder: Path, threads: int) -> None:
    run = (in_onnxruntime if kind.startswith("ort") else in_torch)(kind, folder, threads)
    bare, imported = next(run), next(run)
    start, cpu = time.perf_counter(), time.process_time()
    next(run)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    times = []
    for _ in range(9):
        before = time.process_time()
        next(run)
        times.append(1e3 * (time.process_time() - before))
    peak = _peak()
    memory = {"bare": bare, "peak": peak, "beyond imports": peak - imported}
    latency = statistics.median(times[2:])
    print(json.dumps({**memory, "seconds": seconds, "cpu": cpu, "latency": latency}))


def in_torch(kind: str, folder: Path, threads: int) -> Iterator[float]:
    import torch

    torch.set_num_threads(threads)
    yield _peak()
    if kind != "programs":
        import segmentation_models_pytorch as smp
    if kind != "float":
        from binarize.file import load
    yield _peak()
    if kind != "float":
        network = load(folder / f"{kind}.safetensors", packed=kind == "packed")
    else:
        network = smp.Unet("resnet34", encoder_weights=None, classes=11)
        network.load_state_dict(torch.load(folder / "float.pt", weights_only=True))
        network = network.eval().to(memory_format=torch.channels_last)
    yield 0
    image = torch.rand(1, 3, _SIDE, _SIDE).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        while True:
            network(image)
            yield 0


def in_onnxruntime(kind: str, folder: Path, threads: int) -> Iterator[float]:
    import numpy as np
    import onnxruntime

    yield _peak()
    if kind == "ort-packed":
        from binarize.runtime import Session
    yield _peak()
    path = str(folder / f"{kind}.onnx")
    if kind == "ort-packed":
        run = Session(path, threads=threads)
    else:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options)
        name = session.get_inputs()[0].name

        def run(x: Any) -> Any:
            return session.run(None, {name: x})

    yield 0
    image = np.random.default_rng(0).random((1, 3, _SIDE, _SIDE), np.float32)
    while True:
        run(image)
        yield 0


def _peak() -> float:
    """Peak resident memory so far, in MiB (of this process: rusage inherits its parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def prepare(folder: Path) -> None:
    import segmentation_models_pytorch as smp
    import torch

    import binarize

    network = smp.Unet("resnet34", encoder_weights=None, classes=11).eval()
    torch.save(network.state_dict(), folder / "float.pt")
    student = binarize.convert(network).eval()
    binarize.save(student, folder / "packed.safetensors")
    image = torch.zeros(1, 3, _SIDE, _SIDE).contiguous(memory_format=torch.channels_last)
    packed = binarize.pack(student, image)
    binarize.save(packed, folder / "programs.safetensors")
    torch.onnx.export(network, (image,), folder / "ort-float.onnx", dynamo=True, verbose=False)
    binarize.export_onnx(packed, folder / "ort-standard.onnx", image)
    binarize.export_onnx(packed, folder / "ort-packed.onnx", image, runtime="binarize")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker[0], Path(args.worker[1]), args.threads)
        return
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in _KINDS}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        sizes = {path.stem: path.stat().st_size for path in Path(name).iterdir()}
        for _ in range(args.rounds):
            for kind, found in results.items():
                command = [sys.executable, "-W", "ignore", __file__, "--worker", kind, name]
                command += ["--threads", str(args.threads)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(json.loads(done.stdout))
    print(f"{'median of ' + str(args.rounds):24}" + "".join(f"{kind:>18}" for kind in _KINDS))
    for key in ("bare", "peak", "beyond imports", "seconds", "cpu", "latency"):
        unit = {"seconds": "s", "cpu": "s", "latency": "ms"}.get(key, "MiB")
        values = [statistics.median(row[key] for row in results[kind]) for kind in _KINDS]
        cells = [f"{value:10.2f} (x{value / values[0]:.2f})" for value in values]
        print(f"{key + ', ' + unit:24}" + "".join(f"{cell:>18}" for cell in cells))
    print("file, MB: " + ", ".join(f"{name} {size / 1e6:.2f}" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
