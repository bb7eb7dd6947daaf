"""How a packed network runs each layer, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from binarize.graph.classify import module_kind
from binarize.lower import PackedNetwork
from binarize.nn import BinaryLayer
from binarize.nn.packed import PackedUnit, StoredWeight
from binarize.nn.packed_int8 import PackedInt8
from binarize.report.numbers import readable

__all__ = ["PackedReport", "PackedRow", "packed_report"]

_COUNTED = "its sums over signs leave one factor per sample and output channel"
_COUNTED_OFTEN = "{} sums over signs, each with its own factor per sample and output channel"


@dataclass(frozen=True)
class PackedRow:
    """One layer.

    Attributes:
        name: Dotted name in the network that was packed.
        kind: Class of the packed layer, or of the float layer.
        path: ``"popcount"`` (XNOR-popcount kernel), ``"int8"`` (8-bit products, integer sums),
            ``"float accumulation"`` (weights stored as bits, products and sums in floating point)
            or ``"float"``.
        reason: Why.
        bytes: Memory of all its tensors.
        kernel: For ``"popcount"``: the instruction set, and whether its kernels count bits of
            words or look sums up in tables, whichever is faster for this layer's shape.
    """

    name: str
    kind: str
    path: str
    reason: str
    bytes: int
    kernel: str = ""


@dataclass(frozen=True)
class PackedReport:
    """How a packed network runs.

    Attributes:
        network: Class of the network.
        layers: The rows.
        bytes: Memory of all tensors of the network.
        unfused: Why no program can be made for the whole network (its modules then run one by
            one), or ``None``.
    """

    network: str
    layers: tuple[PackedRow, ...]
    bytes: int
    unfused: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [
            (r.name, r.kind, r.path, r.kernel, readable(r.bytes, "B"), r.reason)
            for r in self.layers
        ]
        rows.insert(0, ("Layer", "Kind", "Path", "Kernel", "Bytes", "Why"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        paths = [row.path for row in self.layers]
        counts = ", ".join(f"{paths.count(path)} {path}" for path in dict.fromkeys(paths))
        lines = [f"{self.network}, packed: {counts}; {readable(self.bytes, 'B')} in memory"]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join(cells).rstrip())
        if self.unfused is not None:
            lines.append(f"modules run one by one: {self.unfused}")
        return "\n".join(lines)


def packed_report(model: PackedNetwork) -> PackedReport:
    """Describe the path of each layer of a packed network, and why it takes it."""
    plan = getattr(model, "binarize_plan", None)
    decided = plan.layers if plan is not None else ()
    kept: dict[int, tuple[str, str]] = {}
    for decision in decided:
        try:
            module = model.network.get_submodule(decision.site)
        except AttributeError:
            continue
        kept[id(module)] = decision.site, decision.reason
    return PackedReport(
        network=type(model.network).__name__,
        layers=tuple(_rows(model.network, kept)),
        bytes=_bytes(model),
        unfused=model.unfused,
    )


def _rows(network: nn.Module, kept: dict[int, tuple[str, str]]) -> Iterator[PackedRow]:
    parts: set[nn.Module] = set()
    for path, module in network.named_modules():
        if module in parts:
            continue
        # For a layer with several names, the one in the plan.
        name, reason = kept.get(id(module), (path, "it was not converted"))
        kind, size = type(module).__name__, _bytes(module)
        if isinstance(module, PackedUnit):
            parts.update(module.modules())
            why = _COUNTED if module.counts == 1 else _COUNTED_OFTEN.format(module.counts)
            yield PackedRow(name, kind, "popcount", why, size, module.counting)
        elif isinstance(module, PackedInt8):
            yield PackedRow(name, kind, "int8", reason, size)
        elif isinstance(module, BinaryLayer) and isinstance(module.quantizer, StoredWeight):
            why = str(module.quantizer.reason)
            yield PackedRow(name, kind, "float accumulation", why, size)
        elif module_kind(module) == "layer":
            yield PackedRow(name, kind, "float", reason, size)


def _bytes(module: nn.Module) -> int:
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
