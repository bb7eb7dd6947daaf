"""One binary layer of a stream: with the previous frame's sums where that is faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from binarize.kernels.call import UnitCall
from binarize.kernels.native import stream_unit, unit
from binarize.kernels.stream import UnitStream
from binarize.video.report import StreamRow

__all__ = ["StreamedLayer"]

# Frames of a check: the first brings the state up to date, on the others one way or the other is
# timed; the shortest times count.
_CHECK = 7
# With more than this share of its operations, no layer is faster: it need not be timed.
_HOPELESS = 0.5
# Frames until a layer that did not pay is checked again; doubled each time it still does not.
_WAIT, _LONGEST_WAIT = 100, 1600
# A layer that takes this much more of its operations than when it was checked is checked again.
_MORE = 0.1
# Its state takes memory, and times vary: it has to save something.
_FASTER = 0.9

_Result = tuple[Tensor, Tensor]


class StreamedLayer(nn.Module):
    """Takes the place of a call of ``binarize::unit`` in a program.

    Args:
        name: Name in the report.
        tolerance: See :class:`binarize.Stream`.
        measure: Whether to stream only while that is faster.
    """

    def __init__(self, name: str, tolerance: float, measure: bool) -> None:
        super().__init__()
        self.name = name
        self._tolerance, self._measure = tolerance, measure
        self._stream: UnitStream | None = UnitStream(tolerance)
        self._operations = 0
        self._frames = self._streamed = 0
        self._totals: dict[str, int] = {}
        self._done = 0.0  # in frames' work
        self._checks = _CHECK if measure else 0
        self._plain = self._fast = 0.0  # the shortest times of a check
        self._share: float | None = None  # of its operations that it takes, lately
        self._expected = 0.0  # the same when it was checked
        self._until = 0
        self._wait = _WAIT

    def forward(self, *arguments: Any) -> _Result:
        """Run the layer on the next frame."""
        if not self._frames:
            self._operations = UnitCall(*arguments).operations()
        self._frames += 1
        if self._stream is None and self._frames >= self._until:
            self._stream, self._checks = UnitStream(self._tolerance), _CHECK
            self._share = None
        if self._stream is None:
            self._done += 1
            return unit(*arguments)
        if not self._checks:
            result = self._run(self._stream, arguments)
            if self._measure and (self._share or 0) > self._expected + _MORE:
                self._begin_timing()
            return result
        if self._checks == _CHECK:
            result = self._run(self._stream, arguments)
            self._begin_timing()
            return result
        self._checks -= 1
        # Only what runs first is timed: the other would find weights and input in the caches.
        if self._checks % 2:
            seconds, _ = _timed(unit, *arguments)
            self._plain = min(seconds, self._plain)
            result = self._run(self._stream, arguments)
        else:
            seconds, result = _timed(self._run, self._stream, arguments)
            self._fast = min(seconds, self._fast)
        if not self._checks or (self._share or 0.0) > _HOPELESS:
            self._decide()
        return result

    def _run(self, stream: UnitStream, arguments: tuple[Any, ...]) -> _Result:
        before = stream.counters()
        result = stream_unit(stream, *arguments)
        if not stream.bytes:  # this layer has no state
            self._done += 1
            self._stream, self._checks, self._until = None, 0, 2**62
            return result
        added = {name: value - before[name] for name, value in stream.counters().items()}
        share = added["work_done"] / added["work"] if added["work"] else 0.0
        self._done += share
        if not added["bits"]:  # the first frame
            return result
        self._streamed += 1
        for name, value in added.items():
            self._totals[name] = self._totals.get(name, 0) + value
        self._share = share if self._share is None else self._share + (share - self._share) / 4
        return result

    def _begin_timing(self) -> None:
        if self._stream is not None:
            self._checks = _CHECK - 1
            self._plain = self._fast = float("inf")

    def _decide(self) -> None:
        self._checks = 0
        self._expected = self._share or 0.0
        if self._expected <= _HOPELESS and self._fast < _FASTER * self._plain:
            self._wait = _WAIT
            return
        self._stream = None
        self._until = self._frames + self._wait
        self._wait = min(2 * self._wait, _LONGEST_WAIT)

    def row(self) -> StreamRow:
        """Return the layer's numbers since the stream began."""
        total = {name: max(1, self._totals.get(name, 0)) for name in ("bits", "windows")}
        corrected = self._totals.get("corrected", 0) / total["windows"]
        recounted = self._totals.get("recounted", 0) / total["windows"]
        return StreamRow(
            name=self.name,
            operations=self._operations,
            frames=self._frames,
            streamed=self._streamed,
            changed=self._totals.get("changed_bits", 0) / total["bits"],
            kept=1 - corrected - recounted if self._streamed else 0.0,
            corrected=corrected,
            recounted=recounted,
            saved=1 - self._done / self._frames if self._frames else 0.0,
            bytes=self._stream.bytes if self._stream is not None else 0,
        )


def _timed(call: Callable[..., _Result], *arguments: Any) -> tuple[float, _Result]:
    started = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - started, result
