"""How much work a stream saved, per layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from binarize.report.numbers import readable

__all__ = ["StreamReport", "StreamRow"]


@dataclass(frozen=True)
class StreamRow:
    """One binary layer; shares are means over the frames on which it was streamed.

    Attributes:
        name: Dotted name of the layer, or its number if the network does not have names.
        operations: Bit operations (multiply-accumulates of signs) that a frame takes without a
            stream.
        frames: Frames so far.
        streamed: Frames on which it used the previous frame's sums; on the others it ran as usual,
            because that is as fast.
        changed: Share of its input's bits that differed from those of the previous frame.
        kept: Share of windows (output pixels) none of whose bits changed.
        corrected: Share of windows whose sums were corrected.
        recounted: Share of windows that were counted again.
        saved: Share of its operations that all frames together did not take.
        bytes: Memory of its state.
    """

    name: str
    operations: int
    frames: int
    streamed: int
    changed: float
    kept: float
    corrected: float
    recounted: float
    saved: float
    bytes: int


@dataclass(frozen=True)
class StreamReport:
    """What a stream saved since it began.

    Attributes:
        network: Class of the network.
        frames: Number of frames.
        layers: The rows, in the order in which layers run.
        tolerance: The stream's tolerance; 0 is exact.
    """

    network: str
    frames: int
    layers: tuple[StreamRow, ...]
    tolerance: float

    @property
    def saved(self) -> float:
        """Share of the binary layers' operations that all frames together did not take."""
        total = sum(row.operations for row in self.layers)
        return sum(row.saved * row.operations for row in self.layers) / total if total else 0.0

    @property
    def bytes(self) -> int:
        """Memory of all states."""
        return sum(row.bytes for row in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "saved": self.saved, "bytes": self.bytes}

    def __str__(self) -> str:
        rows = [
            ("Layer", "Operations", "Streamed", "Changed bits", "Kept", "Corrected", "Recounted",
             "Saved", "State"),
            *(
                (row.name, readable(row.operations), f"{row.streamed} of {row.frames}",
                 *(f"{share:.1%}" if row.streamed else "-"
                   for share in (row.changed, row.kept, row.corrected, row.recounted)),
                 f"{row.saved:.1%}", readable(row.bytes, "B"))
                for row in self.layers
            ),
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        kind = f"tolerance {self.tolerance:g}" if self.tolerance else "exact"
        lines = [
            f"{self.network}, {self.frames} frames, {kind}: {self.saved:.1%} of bit operations "
            f"saved; {readable(self.bytes, 'B')} of state"
        ]
        for first, *others in rows:
            cells = [first.ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join(cells))
        return "\n".join(lines)
