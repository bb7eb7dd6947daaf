"""The geometry of a call for the C library, computed once per shape."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

from binarize.errors import BinarizeError
from binarize.kernels.layout import Layout
from binarize.ops.bypass import GROUPINGS

__all__ = ["Geometry", "geometry", "output_size"]

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")
BYPASSES = ("none", *GROUPINGS)

_Three = ctypes.c_int64 * 3


class CGeometry(ctypes.Structure):
    """``BinarizeGeometry`` of csrc/binarize.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in "samples in_channels out_channels groups".split()),
        *(
            (name, _Three)
            for name in ("in_size out_size kernel stride before dilation bypass_offset".split())
        ),
        *(
            (name, ctypes.c_int64)
            for name in (
                "padding_mode transposed bypass folded depthwise sources residuals".split()
            )
        ),
        ("source", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("prepared", ctypes.c_int64),
    )


class Geometry:
    """A geometry that passed all checks.

    Attributes:
        address: Address of the C structure for a weight in the portable layout.
        layout: The weight's layout.
        out_shape: (N, C_out, *spatial).
        out_strides: Strides of the channels-last result.
        in_channels: C_in.
        out_channels: C_out.
        weight_bytes: Size of the packed weight.
        work: Estimated cost of a call, in floats read or written.
        scratch: Bytes of scratch memory by number of threads, filled in by the caller.
    """

    def __init__(
        self, structure: CGeometry, keep: tuple[Any, ...], out: Sequence[int], weight_bytes: int
    ) -> None:
        self._structure = structure
        self._keep = keep
        self.address = ctypes.addressof(structure)
        self.out_shape = (structure.samples, structure.out_channels, *out)
        strides = [1]
        step = structure.out_channels
        for length in reversed(out):
            strides.insert(1, step)
            step *= max(1, length)
        self.out_strides = (step, *strides)
        self.in_channels = structure.in_channels
        self.out_channels = structure.out_channels
        self.weight_bytes = weight_bytes
        self.work = _work(structure)
        self.scratch: dict[int, int] = {}
        s = structure
        self.layout = (
            *(s.in_channels, s.out_channels, s.groups, s.transposed, s.folded, s.depthwise),
            *(tuple(v) for v in (s.kernel, s.stride, s.dilation)),
        )
        self._prepared: dict[int, CGeometry] = {}

    def prepared(self, number: int) -> int:
        """Return the address of the C structure for a weight prepared for an instruction set."""
        found = self._prepared.get(number)
        if found is None:
            found = CGeometry.from_buffer_copy(self._structure)
            found.prepared = 1 + number
            self._prepared[number] = found
        return ctypes.addressof(found)

    def plain(self) -> bytes:
        """Return the C structure and its tables without addresses, for use in another process."""
        return bytes(self._structure)[: CGeometry.source.offset] + b"".join(
            bytes(table) for table in self._keep
        )


def _work(g: CGeometry) -> int:
    """Estimate the cost: inputs and outputs are passed over twice; 512 bits cost one float."""
    inputs, outputs = g.in_channels * prod(g.in_size), g.out_channels * prod(g.out_size)
    taps = outputs * prod(g.kernel) * (g.in_channels // g.groups)
    if g.transposed:
        taps //= prod(g.stride)
    return int(g.samples * (2 * inputs + 2 * outputs + taps // 512))


def output_size(
    size: Sequence[Any],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[Any],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[Any],
) -> list[Any]:
    """Return the spatial size of the output; sizes and paddings may be symbolic.

    Args:
        size: Spatial size of the input, after upsampling.
        kernel: Per dimension.
        stride: Per dimension.
        padding: Pairs (before, after), the first dimension first.
        dilation: Per dimension.
        transposed: Whether the convolution is transposed.
        output_padding: Per dimension; only for transposed convolutions.

    Returns:
        One size per dimension.
    """
    sizes = []
    for d, length in enumerate(size):
        span, pads = dilation[d] * (kernel[d] - 1) + 1, padding[2 * d] + padding[2 * d + 1]
        if transposed:
            sizes.append((length - 1) * stride[d] - pads + span + output_padding[d])
        else:
            sizes.append((length + pads - span) // stride[d] + 1)
    return sizes


@lru_cache(maxsize=1024)
def geometry(
    shapes: tuple[tuple[int, ...], ...],
    strides: tuple[tuple[int, ...], ...],
    upsample: tuple[int, ...],
    out_channels: int,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    padding_mode: str,
    transposed: bool,
    output_padding: tuple[int, ...],
    bypass: str,
    bypass_offset: tuple[int, ...],
    residuals: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...],
) -> Geometry:
    """Check the arguments of a call and convert them to the library's form.

    Args:
        shapes: Shapes of the sources, (N, C, *spatial).
        strides: Strides of the sources, in elements; the channel stride must be 1.
        upsample: Upsampling factor per source.
        out_channels: C_out.
        kernel: Kernel size, per spatial dimension.
        stride: Per spatial dimension.
        padding: Pairs (before, after).
        dilation: Per spatial dimension.
        groups: Groups of the convolution.
        padding_mode: As in :class:`torch.nn.Conv2d`.
        transposed: Whether the convolution is transposed.
        output_padding: Per spatial dimension.
        bypass: ``"none"`` or the grouping of the bypass.
        bypass_offset: Start of the bypass's windows, per spatial dimension.
        residuals: Shape and strides of each residual.

    Returns:
        The geometry; calls with the same arguments share it.

    Raises:
        BinarizeError: The arguments are inconsistent.
    """
    size = _input_size(shapes, upsample)
    samples, channels = shapes[0][0], sum(s[1] for s in shapes)
    _check("groups", groups, groups > 0 and not channels % groups and not out_channels % groups,
           f"must divide {channels} and {out_channels} channels")  # fmt: skip
    dims = len(size)
    for name, values, count, minimum in (
        ("kernel", kernel, dims, 1),
        ("stride", stride, dims, 1),
        ("padding", padding, 2 * dims, 0),
        ("dilation", dilation, dims, 1),
        ("output_padding", output_padding, dims, 0),
    ):
        is_valid = len(values) == count and all(v >= minimum for v in values)
        _check(name, values, is_valid, f"must hold {count} numbers, at least {minimum} each")
    _check("bypass_offset", bypass_offset, len(bypass_offset) == dims, f"must hold {dims} numbers")
    _check("padding_mode", padding_mode, padding_mode in PADDING_MODES,
           f"must be one of {', '.join(PADDING_MODES)}")  # fmt: skip
    _check("bypass", bypass, bypass in BYPASSES, f"must be one of {', '.join(BYPASSES)}")
    _check("padding_mode", padding_mode, padding_mode == "zeros" or not transposed,
           "must be zeros for a transposed convolution")  # fmt: skip
    if padding_mode in ("reflect", "circular"):
        short = 1 if padding_mode == "reflect" else 0
        is_valid = all(max(padding[2 * d : 2 * d + 2]) <= size[d] - short for d in range(dims))
        _check(
            "padding",
            padding,
            is_valid,
            f"must be smaller than the feature map, {size}, to {padding_mode} it",
        )
    out = output_size(size, kernel, stride, padding, dilation, transposed, output_padding)
    _check("sources", shapes, all(v > 0 for v in (*size, *out)), "must give at least one output")
    for shape, _ in residuals:
        is_valid = shape == (samples, out_channels, *out)
        _check("residuals", shape, is_valid, f"must have shape {(samples, out_channels, *out)}")
    reads = channels // groups * prod(kernel)
    _check("kernel", kernel, reads < 2**30,
           "must read fewer than 2**30 values per output: they are counted in 32 bits")  # fmt: skip
    layout = Layout(channels, out_channels, kernel, stride, dilation, groups, transposed)
    pointwise = not transposed and all(v == 1 for v in (*kernel, *stride)) and not any(padding)
    every = [*strides, *(s for _, s in residuals)]
    flat = (
        pointwise
        and not any(bypass_offset)
        and all(u == 1 for u in upsample)
        and all(_collapses(size, s[2:]) for s in every)
    )

    def three(values: Sequence[int], fill: int) -> Any:
        """Return the values of the spatial dimensions as (z, y, x)."""
        if flat:
            return _Three(fill, fill, values[-1])
        return _Three(*(fill,) * (3 - dims), *values)

    def map_strides(values: tuple[int, ...]) -> list[int]:
        spatial = [0, 0, values[-1]] if flat else [*(0,) * (3 - dims), *values[2:]]
        return [values[0], *spatial]

    count = prod(size)
    source = [
        v
        for s, u, t in zip(shapes, upsample, strides, strict=True)
        for v in (s[1], u, *map_strides(t))
    ]
    residual = [v for _, t in residuals for v in map_strides(t)]
    c_source = (ctypes.c_int64 * len(source))(*source)
    c_residual = (ctypes.c_int64 * len(residual))(*residual)
    structure = CGeometry(
        samples,
        channels,
        out_channels,
        groups,
        _Three(1, 1, count) if flat else three(size, 1),
        _Three(1, 1, count) if flat else three(out, 1),
        three(kernel, 1),
        three(stride, 1),
        three(padding[::2], 0),
        three(dilation, 1),
        three(bypass_offset, 0),
        PADDING_MODES.index(padding_mode),
        transposed,
        BYPASSES.index(bypass),
        layout.folded,
        layout.depthwise,
        len(shapes),
        len(residuals),
        ctypes.addressof(c_source),
        ctypes.addressof(c_residual),
        0,
    )
    return Geometry(structure, (c_source, c_residual), out, layout.bytes)


def _input_size(shapes: tuple[tuple[int, ...], ...], upsample: tuple[int, ...]) -> tuple[int, ...]:
    is_valid = len(shapes) > 0 and all(3 <= len(s) <= 5 and s[1] > 0 for s in shapes)
    _check(
        "sources",
        shapes,
        is_valid,
        "must be feature maps (N, C, *spatial) of one to three dimensions",
    )
    is_valid = len(upsample) == len(shapes) and all(u >= 1 for u in upsample)
    _check("upsample", upsample, is_valid, "must hold one factor of at least 1 per source")
    sizes = [tuple(v * u for v in s[2:]) for s, u in zip(shapes, upsample, strict=True)]
    is_valid = all(z == sizes[0] for z in sizes) and all(s[0] == shapes[0][0] for s in shapes)
    _check("sources", shapes, is_valid, "must agree in samples and, after upsampling, in size")
    return sizes[0]


def _collapses(size: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Return whether the positions of a feature map have a constant stride."""
    step = strides[-1]
    for length, stride in zip(reversed(size), reversed(strides), strict=True):
        if length != 1 and stride != step:
            return False
        step *= length
    return True


def _check(argument: str, value: object, is_valid: bool, rule: str) -> None:
    if not is_valid:
        raise BinarizeError(argument, value, rule, "see binarize.kernels.ops for its meaning")
