"""Write cases for replay.cpp: random geometries, their tensors, and plain torch's results.

Run by .ci/kernels: ``python write_cases.py FILE [COUNT]``.
"""

from __future__ import annotations

import contextlib
import math
import random
import struct
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from binarize.errors import BinarizeError
from binarize.kernels import int8, pack_weight, reference
from binarize.kernels.codes import inverse_step
from binarize.kernels.geometry import geometry, output_size

CHANNELS = (1, 2, 3, 15, 16, 17, 24, 63, 64, 65, 97, 130)
ORDER = ("weight", "gain", "offset", "mean_gain", "threshold", "flip", "exponent")
ACTIVATION = ("act_shift", "act_slope", "act_out_shift")


def draw_case(draw: random.Random) -> dict[str, Any]:
    """Arguments of one unit; they may not fit together."""
    dims, transposed = draw.choice((1, 2, 2, 2, 3)), draw.random() < 0.25
    groups, channels, outputs = 1, draw.choice(CHANNELS), draw.choice(CHANNELS)
    kind = draw.choice(("dense", "dense", "grouped", "depthwise"))
    if kind == "grouped":
        groups = draw.choice((2, 3))
        channels, outputs = channels * groups, outputs * groups
    elif kind == "depthwise":
        groups = outputs = channels

    def each(*values: int) -> list[int]:
        return [draw.choice(values) for _ in range(dims)]

    kernel, stride, dilation = each(1, 2, 3, 5), each(1, 1, 2, 3), each(1, 1, 2)
    sources = draw.choice((1, 1, 2, 3)) if channels > 2 and groups == 1 else 1
    cuts = sorted(draw.sample(range(1, channels), sources - 1))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, channels], strict=True)]
    factors = [draw.choice((1, 2)) for _ in sizes]
    size, samples = [2 * v for v in each(1, 2, 3, 4)], draw.choice((1, 2))
    maps = [
        torch.randn(samples, *(v // f for v in size), c).movedim(-1, 1)
        for c, f in zip(sizes, factors, strict=True)
    ]
    signs = (channels, outputs // groups) if transposed else (outputs, channels // groups)
    exact = draw.random() < 0.3

    def maybe(n: int) -> Tensor | None:
        return None if exact or draw.random() < 0.4 else torch.randn(n)

    padding = [p for _ in kernel for p in (draw.randint(0, 2),) * 2]
    return {
        "sources": maps,
        "upsample": factors,
        "means": [],
        "weight": pack_weight(
            torch.randn(*signs, *kernel),
            stride=stride,
            dilation=dilation,
            groups=groups,
            transposed=transposed,
        ),
        "gain": torch.ones(outputs) if exact else torch.randn(outputs) / 8,
        "offset": torch.zeros(outputs) if exact else torch.randn(outputs),
        "mean_gain": maybe(channels),
        "threshold": torch.randn(channels) / 4,
        "flip": torch.rand(channels) < 0.5 if draw.random() < 0.3 else None,
        "exponent": maybe(1),
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": "zeros"
        if transposed
        else draw.choice(("zeros", "reflect", "replicate", "circular")),
        "transposed": transposed,
        "output_padding": [draw.randint(0, s - 1) if transposed else 0 for s in stride],
        "bypass": "none" if exact else draw.choice(("none", "contiguous", "interleaved")),
        "bypass_offset": [draw.randint(-1, 2) for _ in kernel],
        "residuals": [],
        **{name: maybe(outputs) for name in ACTIVATION},
        "want_means": not exact,
        # Codes of exact numbers are equal; others might be rounded the other way.
        "y_scale": draw.choice((0.25, 3.7)) if exact and draw.random() < 0.5 else None,
        "y_zero": 9,
    }


def encode(values: dict[str, Any], draw: random.Random) -> bytes:
    """One case as replay.cpp reads it."""
    maps = values["sources"]
    if values["mean_gain"] is not None:
        # Given, as another order of summing may move a value over the threshold.
        values["means"] = [x.mean(list(range(2, x.dim()))) for x in maps]
    y, _ = reference.unit(**values)
    if values["want_means"]:
        residuals = [
            torch.randn(y.movedim(1, -1).shape).movedim(-1, 1) for _ in range(draw.randint(0, 2))
        ]
        values["residuals"] = residuals
    y, means = reference.unit(**values)
    names = "kernel stride padding dilation groups padding_mode transposed output_padding".split()
    plain = [tuple(v) if isinstance(v, list) else v for v in (values[name] for name in names)]
    found = geometry(
        tuple(tuple(x.shape) for x in maps),
        tuple(x.stride() for x in maps),
        tuple(values["upsample"]),
        values["gain"].numel(),
        *plain,
        values["bypass"],
        tuple(values["bypass_offset"]),
        tuple((tuple(x.shape), x.stride()) for x in values["residuals"]),
    )
    exact = not values["want_means"]
    scale, zero = values["y_scale"], values["y_zero"]
    coding = None if scale is None else torch.tensor([inverse_step(scale), float(zero)])
    tensors = [values[name] for name in (*ORDER, *ACTIVATION)]
    tensors += [coding, y, None if exact else means, None, *maps]
    tensors += values["means"] or [None] * len(maps)
    tensors += values["residuals"]
    blobs = [struct.pack("q", exact), found.plain()]
    for tensor in tensors:
        if tensor is None:
            blobs.append(struct.pack("q", -1))
            continue
        data = (
            (tensor.movedim(1, -1) if tensor.dim() > 2 else tensor).contiguous().numpy().tobytes()
        )
        blobs += [struct.pack("q", len(data)), data]
    return b"".join(blobs)


def encode_depthwise(draw: random.Random) -> bytes:
    """A depthwise convolution on codes as replay.cpp reads it: the result is exact."""

    def two(*values: int) -> list[int]:
        return [draw.choice(values) for _ in range(2)]

    channels, samples = draw.choice((1, 3, 8, 24, 33, 96)), draw.choice((1, 2))
    kernel, stride, dilation = two(1, 2, 3, 5), two(1, 1, 2, 3), two(1, 1, 2, 7)
    padding, size = [draw.randint(0, 3) for _ in range(4)], two(1, 4, 9, 30)
    out = output_size(size, kernel, stride, padding, dilation, False, ())
    if min(out) < 1:
        raise BinarizeError("size", size, "must give at least one output", "take a larger one")
    x = torch.randn(samples, *size, channels).movedim(-1, 1)
    scale, zero, y_zero = draw.choice((0.02, 0.5)), draw.choice((0, 7, 255)), draw.choice((0, 99))
    y_scale = draw.choice((None, 0.1))
    x = int8.quantized(x, scale, zero) if draw.random() < 0.5 else x
    weight = torch.randint(-127, 128, (channels, 1, *kernel), dtype=torch.int8)
    gain, bias = torch.randn(channels) / 64, torch.randn(channels) if draw.random() < 0.5 else None
    limits = draw.choice((None, (0.0, 6.0)))
    y = int8.reference(
        *(x, scale, zero, weight, gain, bias, stride, padding, dilation, channels, False, (0, 0)),
        *("none" if limits is None else "hardtanh", limits or (), y_scale, y_zero),
    )
    steps, given = x.stride(), x.dtype == torch.uint8
    numbers = [samples, channels, *size, *out, *kernel, *stride, *padding[::2], *dilation]
    numbers += [steps[0], *steps[2:], given, y_scale is not None, zero, y_zero]
    low, high = limits or (-math.inf, math.inf)
    inverse = 0.0 if y_scale is None else inverse_step(y_scale)
    floats = torch.tensor([scale, inverse_step(scale), inverse, low, high])
    blobs = [struct.pack(f"{len(numbers)}q", *numbers)]
    for tensor in (floats, x.movedim(1, -1), weight, gain, bias, y.movedim(1, -1)):
        data = b"" if tensor is None else tensor.contiguous().numpy().tobytes()
        blobs += [struct.pack("q", -1 if tensor is None else len(data)), data]
    return b"".join(blobs)


def main(path: str, count: int = 300) -> None:
    """Write ``count`` cases of units, and as many depthwise convolutions."""
    torch.manual_seed(0)
    draw, cases = random.Random(0), []
    while len(cases) < count:
        values = draw_case(draw)
        try:
            cases.append(encode(values, draw))
        except (BinarizeError, RuntimeError):
            continue  # a window larger than the feature map, or a reflection beyond it
    depthwise: list[bytes] = []
    while len(depthwise) < count:
        with contextlib.suppress(BinarizeError):
            depthwise.append(encode_depthwise(draw))
    number = struct.pack("q", count)
    Path(path).write_bytes(number + b"".join(cases) + number + b"".join(depthwise))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
