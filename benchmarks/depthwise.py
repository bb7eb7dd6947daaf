"""Depthwise 8-bit convolutions: ours against oneDNN's, as in a MobileNetV2 at 480x480.

    python benchmarks/depthwise.py

Interleaved, one thread, processor time, minimum and median. The layers read floats or codes and
write floats: in a packed network by `deploy`, a 1-bit unit before the layer writes codes, and one
behind it reads floats. oneDNN's time includes the rounding of its input.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from convolution import measure
from torch import Tensor

from binarize.kernels import int8
from binarize.kernels.native import status

# Channels, height and width, stride, dilation.
LAYERS = [
    (32, 240, 1, 1),
    (96, 240, 2, 1),
    (144, 120, 1, 1),
    (144, 120, 2, 1),
    (192, 60, 1, 1),
    (384, 30, 1, 1),
    (576, 30, 1, 1),
    (960, 30, 1, 2),
    (1280, 30, 1, 12),
]


def layer(
    channels: int, side: int, stride: int, dilation: int, codes: bool
) -> Callable[[], Tensor]:
    """A call of a 3x3 layer with ReLU6."""
    x = torch.randn(1, channels, side, side).contiguous(memory_format=torch.channels_last)
    given = int8.quantized(x, 0.02, 128) if codes else x
    weight = torch.randint(-63, 64, (channels, 1, 3, 3), dtype=torch.int8)
    factors = torch.rand(channels) / 100, torch.randn(channels)
    how = [stride] * 2, [dilation] * 4, [dilation] * 2, channels, False, [0, 0]
    return lambda: int8.int8_layer(
        given, 0.02, 128, weight, *factors, *how, "hardtanh", [0.0, 6.0], None, 0
    )


def by_onednn(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same call without our kernel."""
    own = int8._depthwise

    def call() -> Tensor:
        int8._depthwise = lambda *arguments: None
        try:
            return run()
        finally:
            int8._depthwise = own

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="per layer")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{status().active}, torch {torch.__version__}, one thread; ms: min (median)")
    for channels, side, stride, dilation in LAYERS:
        floats, codes = (layer(channels, side, stride, dilation, kind) for kind in (False, True))
        runs = {"oneDNN, floats": by_onednn(floats), "floats": floats, "codes": codes}
        with torch.inference_mode():
            found = measure(runs, seconds, time.thread_time)
        cells = "  ".join(f"{name} {a:.2f} ({b:.2f})" for name, (a, b) in found.items())
        ratios = [found["oneDNN, floats"][k] / found["codes"][k] for k in (0, 1)]
        print(
            f"{channels} at {side}, stride {stride}, dilation {dilation}: {cells}"
            f"  ratio {ratios[0]:.1f} ({ratios[1]:.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
