"""Float pointwise convolutions, channels last: torch's own choice against oneDNN.

    python benchmarks/pointwise.py
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/pointwise.py

Minimum of several interleaved runs; processor time with one thread. "oneDNN" is how packed networks
run pointwise convolutions that no binary layer follows (`binarize/lower/float_layers.py`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from binarize.lower.float_layers import conv1x1

# Input channels, output channels, height and width.
SHAPES = [
    (2048, 2048, 1),
    (512, 1000, 7),
    (64, 11, 15),
    (256, 256, 15),
    (256, 21, 30),
    (256, 11, 120),
    (304, 256, 120),
    (64, 21, 240),
    (16, 11, 480),
    (128, 151, 240),
    (128, 151, 480),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="per shape")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    for inputs, outputs, side in SHAPES:
        x = torch.randn(1, inputs, side, side).contiguous(memory_format=torch.channels_last)
        weight, bias = torch.randn(outputs, inputs, 1, 1), torch.randn(outputs)
        runs: dict[str, Callable[..., torch.Tensor]] = {
            "conv2d": F.conv2d,
            "oneDNN": conv1x1,
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        end = time.perf_counter() + options.seconds
        with torch.inference_mode():
            while time.perf_counter() < end or len(times["oneDNN"]) < 5:
                for name, run in runs.items():
                    started = clock()
                    run(x, weight, bias)
                    times[name].append(1e3 * (clock() - started))
        shown = "  ".join(f"{name} {min(t):.3f} ms" for name, t in times.items())
        ratio = min(times["conv2d"]) / min(times["oneDNN"])
        print(f"{inputs:5}->{outputs:4} at {side:3}  {shown}  x{ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
