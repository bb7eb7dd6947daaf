"""Peak memory and loading time of U-Net ResNet-34 at 480x480: float, packed, and its programs.

    python benchmarks/memory.py [--rounds 5] [--threads 1]

Every number is from a process of its own, and the three take turns. A process imports the library
of the network, loads it from a file and runs it on one picture. Float: the network is built and its
``state_dict`` put in, as users do; packed: ``binarize.load(..., packed=True)`` of the 1-bit
network's file; programs: ``binarize.load`` of what ``binarize.save`` wrote of the packed network,
which needs torch alone. Memory is the peak of the resident set, as the kernel counts it, as a whole
and beyond what the imports took; "torch" is what importing torch alone comes to. Loading time
starts after the imports; CPU time is what the process took for it on all cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_SIDE = 480
_KINDS = ("float", "packed", "programs")


def worker(kind: str, folder: Path, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    bare = _peak()
    if kind != "programs":
        import segmentation_models_pytorch as smp
    if kind != "float":
        from binarize.file import load
    imported = _peak()
    start, cpu = time.perf_counter(), time.process_time()
    if kind != "float":
        network = load(folder / f"{kind}.safetensors", packed=kind == "packed")
    else:
        network = smp.Unet("resnet34", encoder_weights=None, classes=11)
        network.load_state_dict(torch.load(folder / "float.pt", weights_only=True))
        network = network.eval().to(memory_format=torch.channels_last)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    image = torch.rand(1, 3, _SIDE, _SIDE).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(2):
            network(image)
    peak = _peak()
    memory = {"peak": peak, "beyond imports": peak - imported, "torch": bare}
    print(json.dumps({**memory, "seconds": seconds, "cpu": cpu}))


def _peak() -> float:
    """Peak resident memory so far, in MiB (of this program only: rusage counts its parent's)."""
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
    binarize.save(binarize.pack(student, image), folder / "programs.safetensors")


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
        for _ in range(args.rounds):
            for kind, found in results.items():
                command = [sys.executable, "-W", "ignore", __file__, "--worker", kind, name]
                command += ["--threads", str(args.threads)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(json.loads(done.stdout))
    print(f"{'median of ' + str(args.rounds):24}" + "".join(f"{kind:>18}" for kind in _KINDS))
    for key in ("torch", "peak", "beyond imports", "seconds", "cpu"):
        unit = "s" if key in ("seconds", "cpu") else "MiB"
        values = [statistics.median(row[key] for row in results[kind]) for kind in _KINDS]
        cells = [f"{value:10.2f} (x{value / values[0]:.2f})" for value in values]
        print(f"{key + ', ' + unit:24}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
