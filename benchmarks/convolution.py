"""One binary convolution against the best float32 convolution of the same shape.

    python benchmarks/convolution.py --threads 1
    python benchmarks/convolution.py --threads 1 --cpu-time     # on a busy machine
    python benchmarks/convolution.py --cpu-time --policies groupnet,cbnn

For every layer, interleaved: the float32 convolution in both memory formats (oneDNN), packing and
binary convolution alone, and a whole unit (distribution-adaptive thresholds and scale, norm,
bypass, shifted PReLU, means for the next layer); also OpenVINO's BinaryConvolution on float feature
maps if OpenVINO is installed. Each runs twice per turn and the second run is timed, so that the
input is in the cache, as it would be after the previous layer. Ratios are of minima and of medians.

With ``--policies``, the packed layer of each policy (bypass and norm included) instead, as packing
chooses, counting bits, and with sums in floating point; and the float layer with its norm and ReLU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F

from binarize.kernels import pack_weight
from binarize.kernels.native import select, status
from binarize.nn import BiConv2d, folding
from binarize.nn.packed import PackedUnit, pack_layer
from binarize.policy import load_policy

# Input channels, output channels, kernel, height and width.
LAYERS = [
    (64, 64, 3, 120),
    (128, 128, 3, 60),
    (256, 256, 3, 60),
    (512, 512, 3, 30),
    (384, 96, 3, 120),
    (384, 96, 1, 120),
]


def arguments(x: torch.Tensor, weight: torch.Tensor, whole: bool) -> list[Any]:
    """Arguments of the op: the convolution alone, or a whole unit."""
    outputs, inputs, taps = weight.shape[0], x.shape[1], weight.shape[2]
    maybe = [torch.randn(outputs) if whole else None for _ in range(3)]
    return [
        [x],
        [1],
        [x.mean((2, 3))] if whole else [],
        pack_weight(weight, stride=(1, 1), dilation=(1, 1)),
        torch.rand(outputs),
        torch.randn(outputs),
        torch.rand(inputs) if whole else None,
        torch.randn(inputs),
        None,
        torch.tensor(0.1) if whole else None,
        (taps, taps),
        (1, 1),
        (taps // 2,) * 4,
        (1, 1),
        1,
        "zeros",
        False,
        (0, 0),
        "contiguous" if whole else "none",
        (0, 0),
        [],
        *maybe,
        whole,
    ]


def openvino_convolution(
    weight: torch.Tensor, side: int, threads: int
) -> Callable[[], object] | None:
    """OpenVINO's 1-bit convolution for such a layer, or ``None`` if OpenVINO is not installed."""
    try:
        import openvino
        from openvino import opset1, opset13
    except ImportError:
        return None
    outputs, inputs, taps = weight.shape[0], weight.shape[1], weight.shape[2]

    def constant(value: float) -> Any:
        return opset1.constant(np.full((1, 1, 1, 1), value, np.float32))

    x = opset1.parameter([1, inputs, side, side], np.float32)
    signs = opset1.fake_quantize(x, constant(0), constant(0), constant(-1), constant(1), 2)
    bits = np.packbits((weight.numpy() > 0).reshape(-1))
    shape = openvino.Shape([outputs, inputs, taps, taps])
    filters = opset13.constant(openvino.Tensor(bits, shape, openvino.Type.u1))
    geometry = [1, 1], [taps // 2] * 2, [taps // 2] * 2, [1, 1]
    y = opset1.binary_convolution(signs, filters, *geometry, "xnor-popcount", 0.0)
    given = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(openvino.Model([y], [x]), "CPU", given)
    request = compiled.create_infer_request()
    request.infer({0: torch.randn(1, inputs, side, side).numpy()})
    return request.infer


def packed_layers(policies: list[str], shape: tuple[int, ...]) -> dict[str, torch.nn.Module]:
    """Packed layers of a shape, by policy and by how they compute their sums."""
    made: dict[str, torch.nn.Module] = {}
    inputs, outputs, taps, side = shape
    for name in policies:
        layer = BiConv2d(inputs, outputs, taps, padding=taps // 2, unit=load_policy(name).unit)
        layer(torch.randn(2, inputs, side // 4, side // 4))
        layer.eval()
        stored = layer.packed_weight()
        for how, most in (("counted", 10**6), ("floating", 0)):
            with patch.object(folding, "MOST_COUNTS", most):
                twin = pack_layer(layer, *stored)
            if isinstance(twin, PackedUnit) == (how == "counted"):
                made[f"{name}, {how}"] = twin
    return made


def compare_policies(
    policies: list[str], seconds: float, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """Measure packed layers of each policy; print and return the rows."""
    rows = []
    for shape in LAYERS[:3:2]:
        inputs, outputs, taps, side = shape
        x = torch.randn(1, inputs, side, side).contiguous(memory_format=torch.channels_last)
        convolution = torch.nn.Conv2d(inputs, outputs, taps, padding=taps // 2, bias=False)
        plain = torch.nn.Sequential(convolution, torch.nn.BatchNorm2d(outputs), torch.nn.ReLU())
        plain = plain.eval().to(memory_format=torch.channels_last)
        layers = {"float32": plain, **packed_layers(policies, shape)}
        runs: dict[str, Callable[[], object]] = {
            name: lambda module=module, x=x: module(x) for name, module in layers.items()
        }
        with torch.inference_mode():
            found = measure(runs, seconds, clock)
        print(f"{inputs}->{outputs} {taps}x{taps} at {side}")
        for name, (least, median) in found.items():
            ratio = [found["float32"][k] / found[name][k] for k in (0, 1)]
            print(f"  {name:28s} {least:8.2f} ({median:.2f})  x{ratio[0]:.2f} (x{ratio[1]:.2f})")
        rows.append({"layer": list(shape), "ms": found})
    return rows


def measure(
    runs: dict[str, Callable[[], object]], seconds: float, clock: Callable[[], float]
) -> dict[str, tuple[float, float]]:
    """Minimum and median time of each in milliseconds, interleaved."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(runs))]) < 5:
        for name, run in runs.items():
            run()
            start = clock()
            run()
            times[name].append(1e3 * (clock() - start))
    return {name: (min(t), statistics.median(t)) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="per layer")
    parser.add_argument("--kernels", default=status().active, help="as in BINARIZE_KERNELS")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time")
    parser.add_argument("--policies", type=lambda text: text.split(","), metavar="NAMES")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    if options.cpu_time and options.threads != 1:
        parser.error("--cpu-time requires --threads 1")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    # Process time, not thread time: OpenVINO runs in its own thread.
    clock = time.process_time if options.cpu_time else time.perf_counter
    unit = select(options.kernels)
    rows = []
    print(
        f"{options.kernels}, torch {torch.__version__}, {options.threads} threads; ms: min (median)"
    )
    if options.policies:
        rows = compare_policies(options.policies, options.seconds, clock)
    for inputs, outputs, taps, side in [] if options.policies else LAYERS:
        x = torch.randn(1, inputs, side, side)
        nhwc = x.contiguous(memory_format=torch.channels_last)
        weight = torch.randn(outputs, inputs, taps, taps)
        last = weight.contiguous(memory_format=torch.channels_last)
        alone, whole = arguments(nhwc, weight, False), arguments(nhwc, weight, True)
        pad = taps // 2
        runs: dict[str, Callable[[], object]] = {
            "float NCHW": lambda a=x, w=weight, p=pad: F.conv2d(a, w, padding=p),
            "float NHWC": lambda a=nhwc, w=last, p=pad: F.conv2d(a, w, padding=p),
            "binary": lambda a=alone: unit(*a),
            "unit": lambda a=whole: unit(*a),
        }
        rival = openvino_convolution(weight, side, options.threads)
        if rival is not None:
            runs["OpenVINO"] = rival
        with torch.inference_mode():
            found = measure(runs, options.seconds, clock)
        best = [min(found["float NCHW"][k], found["float NHWC"][k]) for k in (0, 1)]
        ratios = {n: [best[k] / found[n][k] for k in (0, 1)] for n in runs if "float" not in n}
        layer = f"{inputs}->{outputs} {taps}x{taps} at {side}"
        rows.append({"layer": layer, "ms": found, "ratio": ratios})
        cells = "  ".join(f"{n} {a:.3f} ({b:.3f})" for n, (a, b) in found.items())
        shown = "  ".join(f"{n} {a:.1f} ({b:.1f})" for n, (a, b) in ratios.items())
        print(f"{layer:22s} {cells}  ratios: {shown}", flush=True)
    if options.json:
        facts = {"kernels": options.kernels, "threads": options.threads, "layers": rows}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(facts, file, indent=1)


if __name__ == "__main__":
    main()
