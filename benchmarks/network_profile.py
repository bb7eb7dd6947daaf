"""Profile a packed network operation by operation, for ``networks.py``."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from binarize import kernels
from binarize.kernels import UnitCall, pack_weight, run_unit
from binarize.lower import PackedNetwork

__all__ = ["Line", "peak_rate", "profile"]

# Input and output channels, kernel, height and width: shapes that suit the kernels.
_LIKED = ((512, 512, 3, 30), (256, 256, 3, 60), (1024, 512, 3, 30), (128, 128, 3, 60))


@dataclass
class Line:
    """Operations of one kind and shape.

    Attributes:
        what: Kind and shape.
        binary: Whether they are 1-bit layers.
        macs: Their 1-bit multiply-accumulates, in total.
        calls: Their number in a forward pass.
        seconds: Their total time, one number per round.
    """

    what: str
    binary: bool
    macs: int = 0
    calls: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median over the rounds, in seconds."""
        return statistics.median(self.seconds)


class _Timed(fx.Interpreter):
    """Runs a program node by node and times each operation."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.noted: list[tuple[str, bool, int, float]] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Time it."""
        started = time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
        result = super().call_function(target, args, kwargs)
        ended = time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
        if target is run_unit or target is kernels.unit:
            self.noted.append((*_unit(args, result[0]), ended - started))
        else:
            name = getattr(target, "__name__", str(target)).partition(".")[0]
            shapes = ", ".join(_shape(x) for x in args if isinstance(x, Tensor) and x.dim() > 1)
            self.noted.append((f"{name} {shapes}".strip(), False, 0, ended - started))
        return result


def _shape(x: Tensor) -> str:
    return "x".join(map(str, x.shape))


def _unit(args: Any, y: Tensor) -> tuple[str, bool, int]:
    """Describe a unit and count its 1-bit multiply-accumulates."""
    call = UnitCall(*args)
    inputs, outputs = sum(x.shape[1] for x in call.sources), y.shape[1]
    rows, columns = call.kernel
    text = f"1-bit {inputs}->{outputs} {rows}x{columns} to {y.shape[2]}x{y.shape[3]}"
    text += "".join(
        f" {name} {value[0]}"
        for name, value in (("stride", call.stride), ("dilation", call.dilation))
        if tuple(value) != (1, 1)
    )
    text += f" groups {call.groups}" if call.groups > 1 else ""
    return text, True, call.operations()


def profile(packed: PackedNetwork, image: Tensor, rounds: int) -> list[Line]:
    """Time all operations of a packed network, the most expensive first.

    With one thread, this is processor time, which other load on the machine hardly affects.

    Raises:
        RuntimeError: The network could not be fused and runs module by module.
    """
    packed(image)
    if packed.unfused is not None:
        raise RuntimeError(f"the network is not fused: {packed.unfused}")
    program = next(reversed(packed._programs.values()))
    lines: dict[str, Line] = {}
    for _ in range(rounds):
        runner = _Timed(program.module)
        runner.run(image)
        spent: dict[str, float] = defaultdict(float)
        calls: dict[str, int] = defaultdict(int)
        for what, binary, macs, seconds in runner.noted:
            line = lines.setdefault(what, Line(what, binary))
            spent[what] += seconds
            calls[what] += 1
            line.calls, line.macs = calls[what], macs * calls[what]
        for what, seconds in spent.items():
            lines[what].seconds.append(seconds)
    return sorted(lines.values(), key=lambda line: -line.median)


def peak_rate(rounds: int) -> float:
    """1-bit multiply-accumulates per second of the fastest plain binary convolution and packing."""
    best = 0.0
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for inputs, outputs, taps, side in _LIKED:
        x = torch.randn(1, inputs, side, side).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(outputs, inputs, taps, taps)
        call = UnitCall(
            sources=[x],
            upsample=[1],
            means=[],
            weight=pack_weight(weight, stride=(1, 1), dilation=(1, 1)),
            gain=torch.rand(outputs),
            offset=torch.randn(outputs),
            mean_gain=None,
            threshold=torch.zeros(inputs),
            flip=None,
            exponent=None,
            kernel=(taps, taps),
            stride=(1, 1),
            padding=(taps // 2,) * 4,
            dilation=(1, 1),
            groups=1,
            padding_mode="zeros",
            transposed=False,
            output_padding=(0, 0),
            bypass="none",
            bypass_offset=(0, 0),
            residuals=[],
            act_shift=None,
            act_slope=None,
            act_out_shift=None,
            want_means=False,
        )
        times = []
        for _ in range(rounds + 1):
            started = clock()
            run_unit(*call)
            times.append(clock() - started)
        macs = side * side * taps * taps * inputs * outputs
        best = max(best, macs / min(times[1:]))
    return best
