"""What the C library does for 8-bit layers: codes, and depthwise convolutions on them."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from binarize.kernels import memory, openmp
from binarize.kernels.codes import inverse_step

__all__ = ["Int8Kernels", "declare"]

_Two = ctypes.c_int64 * 2
# With less work than this many products, waking other threads does not pay.
_SERIAL_WORK = 2**17
_MOST_ROWS, _MOST_TAPS = 32, 513  # as in csrc/binarize.h


class CDepthwise(ctypes.Structure):
    """``BinarizeInt8Depthwise`` of csrc/binarize.h."""

    _fields_ = (
        ("samples", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        *((n, _Two) for n in ("in_size", "out_size", "kernel", "stride", "before", "dilation")),
        ("in_stride", ctypes.c_int64 * 3),
        *((n, ctypes.c_int64) for n in ("in_codes", "out_codes", "in_zero", "out_zero")),
        *((n, ctypes.c_float) for n in ("in_step", "in_inverse", "out_inverse", "least", "most")),
    )


def declare(library: Any) -> None:
    """Declare the functions' types."""
    library.binarize_codes.restype = ctypes.c_int32
    library.binarize_codes.argtypes = [
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_float,
        ctypes.c_int32,
        ctypes.c_void_p,
    ]
    library.binarize_int8_depthwise_scratch.restype = ctypes.c_int64
    library.binarize_int8_depthwise_scratch.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    library.binarize_int8_depthwise.restype = ctypes.c_int32
    library.binarize_int8_depthwise.argtypes = [
        ctypes.c_int32,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]


class Int8Kernels:
    """The functions for one instruction set.

    Args:
        library: The library of the kernels.
        instruction_set: Its number in the library.
        runner: Address of a function that runs another on several threads, or 0.
    """

    def __init__(self, library: Any, instruction_set: int, runner: int) -> None:
        self.library, self.set, self.runner = library, instruction_set, runner

    def codes(self, x: Tensor, scale: float, zero: int) -> Tensor:
        """Return the codes (uint8) of a dense float32 tensor, given step and code of zero."""
        made = torch.empty_like(x, dtype=torch.uint8)
        given = x.data_ptr(), x.numel(), inverse_step(scale), zero
        _check(self.library.binarize_codes(self.set, *given, made.data_ptr()))
        return made

    @staticmethod
    def takes(weight: Tensor, groups: int) -> bool:
        """Check whether a weight (C, 1, *kernel) is depthwise and small enough for exact sums."""
        channels, within, *kernel = weight.shape
        small = math.prod(kernel) <= _MOST_TAPS and kernel[0] <= _MOST_ROWS
        return groups == channels and within == 1 and len(kernel) in (1, 2) and small

    def depthwise(
        self,
        x: Tensor,
        x_scale: float,
        x_zero: int,
        weight: Tensor,
        gain: Tensor,
        bias: Tensor | None,
        stride: Sequence[int],
        before: Sequence[int],
        dilation: Sequence[int],
        out_size: Sequence[int],
        limits: Sequence[float] | None,
        y_scale: float | None,
        y_zero: int,
    ) -> Tensor:
        """Convolve, scale, clip and, if asked, round to codes.

        Args:
            x: (N, C, *spatial), float32 or codes (uint8); copied if its channels are apart.
            x_scale: Step of its codes.
            x_zero: Code of zero.
            weight: Codes (int8), (C, 1, *kernel).
            gain: (C), scales of the weight times the factors folded into them.
            bias: (C), or ``None``.
            stride: Per spatial dimension.
            before: Padding before the first position; negative padding crops.
            dilation: Per spatial dimension.
            out_size: Spatial size of the result, which implies the padding after the last.
            limits: Minimum and maximum of the result; ``None`` for none.
            y_scale: Step of the result's codes; ``None`` for a float32 result.
            y_zero: Code of zero in the result.

        Returns:
            (N, C, *out_size), channels last.
        """
        if x.stride(1) != 1 and x.shape[1] != 1:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        samples, channels = x.shape[:2]
        flat = x.dim() == 3  # rows of height 1

        def pair(values: Sequence[int], filler: int) -> Any:
            return _Two(*((filler,) * flat), *values)

        steps = x.stride()
        least, most = (-math.inf, math.inf) if limits is None else limits
        call = CDepthwise(
            samples,
            channels,
            pair(x.shape[2:], 1),
            pair(out_size, 1),
            pair(weight.shape[2:], 1),
            pair(stride, 1),
            pair(before, 0),
            pair(dilation, 1),
            (ctypes.c_int64 * 3)(steps[0], 0 if flat else steps[2], steps[-1]),
            x.dtype == torch.uint8,
            y_scale is not None,
            x_zero,
            y_zero,
            x_scale,
            inverse_step(x_scale),
            0.0 if y_scale is None else inverse_step(y_scale),
            least,
            most,
        )
        strides = [channels]
        for length in reversed(out_size):
            strides.insert(0, strides[0] * length)
        kind = torch.float32 if y_scale is None else torch.uint8
        y = memory.empty((samples, channels, *out_size), (strides[0], 1, *strides[1:]), kind)
        work = y.numel() * weight[0].numel()
        threads = 1 if work < _SERIAL_WORK else openmp.threads()
        address = ctypes.addressof(call)
        room = self.library.binarize_int8_depthwise_scratch(address, threads)
        scratch = memory.empty((max(1, room),), (1,), torch.uint8)
        weight, gain = weight.contiguous(), gain.contiguous()
        bias = None if bias is None else bias.contiguous()
        held = x, weight, gain, bias, y, scratch
        table = (ctypes.c_void_p * len(held))(*(0 if t is None else t.data_ptr() for t in held))
        run = self.library.binarize_int8_depthwise
        _check(run(self.set, address, table, threads, self.runner))
        return y


def _check(status: int) -> None:
    if status:
        raise RuntimeError(f"the kernels' library: status {status}, report this as a bug")
