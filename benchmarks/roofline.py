"""What bounds 1-bit units that write few channels at high resolution: memory or counting.

    python benchmarks/roofline.py

Per layer of a U-Net at 480x480, one thread, processor time, medians: a whole unit, and two lower
bounds from the same run. The memory bound is the time in which this machine moves the feature maps
of the unit: the input twice, as the scale of every output depends on the mean over the whole input,
and the output twice, as a line of memory is read before it is written. The counting bound is the
number of its multiply-accumulates at the rate of the fastest unit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from convolution import arguments, measure

from binarize.kernels.native import select, status

# Input channels, output channels, height and width; all 3x3.
LAYERS = [(128, 32, 240), (64, 32, 240), (32, 32, 240), (32, 16, 480), (16, 16, 480)]
FASTEST = (512, 512, 30)
_COPIED = 2**24  # floats, more than caches hold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for all layers")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    unit = select(status().active)

    def layer(inputs: int, outputs: int, side: int) -> Callable[[], object]:
        x = torch.randn(1, inputs, side, side).contiguous(memory_format=torch.channels_last)
        given = arguments(x, torch.randn(outputs, inputs, 3, 3), True)
        return lambda: unit(*given)

    source, target = torch.randn(_COPIED), torch.empty(_COPIED)
    runs: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for shape in (*LAYERS, FASTEST):
        runs[str(shape)] = layer(*shape)
    with torch.inference_mode():
        times = measure(runs, seconds, time.thread_time)
    found = {name: median / 1e3 for name, (_, median) in times.items()}
    # A copy reads a line, and reads and writes another.
    bandwidth = 3 * 4 * _COPIED / found["copy"]

    def macs(inputs: int, outputs: int, side: int) -> int:
        return inputs * outputs * 9 * side**2

    rate = macs(*FASTEST) / found[str(FASTEST)]
    print(
        f"{status().active}, torch {torch.__version__}, one thread: {bandwidth / 1e9:.1f} GB/s,"
        f" at most {rate / 1e9:.0f} G 1-bit MACs/s"
    )
    for shape in LAYERS:
        inputs, outputs, side = shape
        spent = found[str(shape)]
        memory = 4 * side**2 * (2 * inputs + 2 * outputs) / bandwidth
        counting = macs(*shape) / rate
        print(
            f"{inputs}->{outputs} at {side}: {1e3 * spent:.2f} ms ({macs(*shape) / spent / 1e9:.0f}"
            f" G/s), memory {1e3 * memory:.2f}, counting {1e3 * counting:.2f},"
            f" of both {(memory + counting) / spent:.0%}"
        )


if __name__ == "__main__":
    main()
