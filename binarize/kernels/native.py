"""The native implementation of ``binarize::unit``: a C library called through ctypes.

The library is expected next to this file, where wheels and the development build put it. ctypes
releases the GIL during a call, and calls are stateless, so threads may call concurrently.
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from binarize.errors import BinarizeError, SlowWarning
from binarize.kernels import int8_native, memory, openmp, prepared, reference
from binarize.kernels.call import UnitCall
from binarize.kernels.codes import inverse_step
from binarize.kernels.geometry import Geometry, geometry
from binarize.kernels.int8_native import Int8Kernels
from binarize.kernels.prepared import PreparedWeights, aligned
from binarize.kernels.stream import UnitStream
from binarize.kernels.stream import declare as declare_stream

__all__ = ["ENVIRONMENT", "Status", "implementation", "status", "stream_unit", "unit"]

ABI = 5
ENVIRONMENT = "BINARIZE_KERNELS"
# In order of preference; the numbers are the library's.
SETS = {"avx512": 2, "avx512bw": 4, "avx2": 1, "neon": 3, "scalar": 0}
# On Linux and macOS, and on Windows: CMakeLists.txt.
_NAMES = ("libbinarize_kernels.so", "binarize_kernels.dll")
# Floats; with less work than this, some 20 microseconds, waking other threads does not pay.
SERIAL_WORK = 2**17
_STATUS = {1: "the library rejects this geometry", 2: "this machine cannot run these kernels"}


@dataclass(frozen=True)
class Status:
    """The installed and the active kernels, for ``binarize doctor``.

    Attributes:
        active: ``"reference"`` or an instruction set.
        library: Path of the C library, or ``None``.
        problem: Why there is no library, or ``None``.
        compiled: Instruction sets in the library.
        usable: Those that this machine supports.
        openmp: The OpenMP runtime whose threads are used, or why there is none.
    """

    active: str
    library: str | None
    problem: str | None
    compiled: list[str] = field(default_factory=list)
    usable: list[str] = field(default_factory=list)
    openmp: str = ""


@lru_cache(maxsize=1)
def _load() -> tuple[Any, str | None, str | None]:
    """Return the library, its path, and the problem if there is none."""
    package = sys.modules[__package__ or "binarize.kernels"]
    # An editable install keeps the library separate from the sources.
    folders = [Path(p) for p in package.__path__]
    for path in (folder / name for folder in folders for name in _NAMES):
        if not path.is_file():
            continue
        try:
            library = ctypes.CDLL(str(path))
            found = library.binarize_abi()
        except (OSError, AttributeError) as error:
            return None, None, f"{path} does not load: {error}"
        if found != ABI:
            return None, None, f"{path} has ABI {found}, this package needs {ABI}: rebuild it"
        library.binarize_scratch.restype = ctypes.c_int64
        library.binarize_scratch.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        prepared.declare(library)
        declare_stream(library)
        int8_native.declare(library)
        return library, str(path), None
    return (
        None,
        None,
        "no C++ compiler worked at installation, or the checkout was not built",
    )


def status() -> Status:
    """Return the installed and the active kernels.

    Raises:
        BinarizeError: The environment variable names unavailable kernels.
    """
    library, path, problem = _load()
    sets = SETS if library is not None else {}
    found = {name: library.binarize_available(number) for name, number in sets.items()}
    compiled = [name for name, state in found.items() if state]
    usable = [name for name, state in found.items() if state == 2]
    choices = [*usable, "reference"]
    wanted = os.environ.get(ENVIRONMENT) or choices[0]
    if wanted not in choices:
        raise BinarizeError(
            ENVIRONMENT,
            wanted,
            f"this installation on this machine has {', '.join(choices)}",
            "set one of them, or unset it to use the first",
        )
    return Status(wanted, path, problem, compiled, usable, openmp.runner(library)[1])


@lru_cache(maxsize=1)
def implementation() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return the active implementation, chosen once per process.

    Warns if kernels are missing, which would otherwise only show in the run time.
    """
    found = status()
    if found.library is None and not os.environ.get(ENVIRONMENT):
        warnings.warn(
            f"1-bit layers run on plain torch, which is slow: {found.problem} (`binarize doctor`)",
            SlowWarning,
            stacklevel=2,
        )
    return select(found.active)


@lru_cache(maxsize=1)
def int8_kernels() -> Int8Kernels | None:
    """Return the active kernels' functions for 8-bit layers; ``None`` for the reference."""
    name = status().active
    if name == "reference":
        return None
    library = _load()[0]
    return Int8Kernels(library, SETS[name], openmp.runner(library)[0])


def select(name: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return an implementation by name: ``"reference"`` or an instruction set."""
    if name == "reference":
        return _plain
    library = _load()[0]
    number, runner = SETS[name], openmp.runner(library)[0]
    weights = PreparedWeights(library, number)

    def native(
        *arguments: Any, stream: UnitStream | None = None, **named: Any
    ) -> tuple[Tensor, Tensor]:
        call = UnitCall(*arguments, **named)
        return _run(library, number, runner, weights, call, stream)

    return native


def counting(
    in_channels: int,
    out_channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    transposed: bool,
) -> str:
    """Return how the active kernels count a convolution's bits, for people.

    The choice follows measurements of all shapes, see ``csrc/README.md``; it depends on the
    instruction set and on the geometry, not on the size of feature maps.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        kernel: As for ``binarize::unit``, as are all that follow.
        stride: Per dimension.
        dilation: Per dimension.
        groups: Number of groups.
        transposed: Whether it is a transposed convolution.

    Returns:
        ``"avx2: table look-ups"``, ``"avx2: popcount"`` or the like; ``"plain torch"``.
    """
    active = status().active
    if active == "reference":
        return "plain torch"
    size = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    none, twice = (0,) * len(size), (0,) * (2 * len(size))
    shape = (1, in_channels, *size)
    steps = torch.empty(shape, device="meta").stride()
    convolution = tuple(kernel), tuple(stride), twice, tuple(dilation), groups, "zeros", transposed
    g = geometry((shape,), (steps,), (1,), out_channels, *convolution, none, "none", none, ())
    prepared = _load()[0].binarize_prepared(SETS[active], g.address)
    return f"{active}: {'table look-ups' if prepared > 0 else 'popcount'}"


def unit(*arguments: Any, **named: Any) -> tuple[Tensor, Tensor]:
    """Run ``binarize::unit`` with the active implementation."""
    return implementation()(*arguments, **named)


def _plain(
    *arguments: Any, stream: UnitStream | None = None, **named: Any
) -> tuple[Tensor, Tensor]:
    """Run plain torch, which keeps nothing from frame to frame."""
    return reference.unit(*arguments, **named)


def stream_unit(stream: UnitStream, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Run ``binarize::unit`` on the next frame of a video, with the active implementation.

    Without a library, or where the unit cannot keep a state, it runs as always.

    Args:
        stream: What the unit keeps from frame to frame.
        *arguments: All arguments of the operator, in the schema's order.
    """
    return implementation()(*arguments, stream=stream)


def _run(
    library: Any,
    number: int,
    runner: int,
    weights: PreparedWeights,
    call: UnitCall,
    stream: UnitStream | None,
) -> tuple[Tensor, Tensor]:
    sources = [_map(x, "sources") for x in call.sources]
    residuals = [_map(x, "residuals") for x in call.residuals]
    out = call.gain.numel()
    g = geometry(
        tuple([tuple(x.shape) for x in sources]),
        tuple([x.stride() for x in sources]),
        tuple(call.upsample),
        out,
        tuple(call.kernel),
        tuple(call.stride),
        tuple(call.padding),
        tuple(call.dilation),
        call.groups,
        call.padding_mode,
        call.transposed,
        tuple(call.output_padding),
        call.bypass,
        tuple(call.bypass_offset),
        tuple([(tuple(x.shape), x.stride()) for x in residuals]),
    )
    threads = 1 if g.work < SERIAL_WORK else openmp.threads()
    inner = g.in_channels
    kind = torch.float32 if call.y_scale is None else torch.uint8
    y = memory.empty(g.out_shape, g.out_strides, kind)
    coding = (
        None if call.y_scale is None else torch.tensor([inverse_step(call.y_scale), call.y_zero])
    )
    y_means = torch.empty((g.out_shape[0], out) if call.want_means else (0,), dtype=torch.float32)
    scratch = memory.empty((_scratch(library, g, threads),), (1,), torch.uint8)
    if call.weight.numel() != g.weight_bytes or call.weight.dtype != torch.uint8:
        raise BinarizeError(
            "weight",
            f"{call.weight.numel()} x {call.weight.dtype}",
            f"this convolution's packed weight has {g.weight_bytes} bytes of uint8",
            "give the result of pack_weight",
        )
    ready = weights.get(call.weight, g)
    # Copied tensors are kept alive until the call returns.
    held = [
        aligned(call.weight) if ready is None else ready,
        _vector(call.gain, out, "gain"),
        _vector(call.offset, out, "offset"),
        _vector(call.mean_gain, inner, "mean_gain"),
        _vector(call.threshold, inner, "threshold"),
        _vector(call.flip, inner, "flip", torch.bool),
        _vector(call.exponent, 1, "exponent"),
        _vector(call.act_shift, out, "act_shift"),
        _vector(call.act_slope, out, "act_slope"),
        _vector(call.act_out_shift, out, "act_out_shift"),
        coding,
        y,
        y_means if call.want_means else None,
        scratch,
        *sources,
    ]
    if call.means:
        if len(call.means) != len(sources):
            raise BinarizeError(
                "means",
                len(call.means),
                "must be empty or have one per source",
                "give one per source",
            )
        held += [
            _vector(m, x.shape[0] * x.shape[1], "means") if m.numel() else None
            for m, x in zip(call.means, sources, strict=True)
        ]
    else:
        held += [None] * len(sources)
    held += residuals
    pointers = [0 if t is None else t.data_ptr() for t in held]
    table = (ctypes.c_void_p * len(pointers))(*pointers)
    address = g.address if ready is None else g.prepared(number)
    state = stream.ready(library, number, address, held[0]) if stream is not None else None
    code = library.binarize_unit_stream(number, address, table, threads, runner, state)
    if code:
        raise BinarizeError(
            "sources", g.out_shape, _STATUS.get(code, f"status {code}"), "report this as a bug"
        )
    return y, y_means


def _scratch(library: Any, g: Geometry, threads: int) -> int:
    size = g.scratch.get(threads)
    if size is None:
        size = g.scratch[threads] = max(1, library.binarize_scratch(g.address, threads))
    return size


def _map(x: Tensor, name: str) -> Tensor:
    """Return a channels-last float32 feature map."""
    if x.dtype != torch.float32:
        raise BinarizeError(
            name, x.dtype, "the kernels read float32 feature maps", "convert it: x.float()"
        )
    if x.stride(1) != 1 and x.shape[1] != 1:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x if x.data_ptr() % 4 == 0 else x.clone()


def _vector(
    x: Tensor | None, count: int, name: str, dtype: torch.dtype = torch.float32
) -> Tensor | None:
    if x is None:
        return None
    if x.dtype is not dtype or x.numel() != count:
        raise BinarizeError(
            name, f"{x.numel()} x {x.dtype}", f"must be {count} x {dtype}", "give a tensor of that"
        )
    return x if x.is_contiguous() else x.contiguous()
