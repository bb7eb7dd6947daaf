"""The numbers of an inspection, as plain data.

Shape legend: C channels of a layer's input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from binarize.page import Markup, Paged

__all__ = ["FeatureMap", "Inspection", "LayerInspection"]


@dataclass(frozen=True)
class LayerInspection:
    """One binary layer's binarized input.

    Entropies are in bits: at most 1 for 1-bit activations, 0 if all values are equal.

    Attributes:
        name: Dotted name in the network.
        kind: Class of the layer.
        binarizer: Name of its activation binarizer in rule files.
        bits: Bits per value.
        calls: How often the layer ran; if 0, all statistics are empty.
        share: Share of +1 per channel over all calls, (C,); with several bits that of the
            upper half of the levels.
        entropy: Entropy per channel of a single feature map, averaged over all of them, (C,):
            BiDense's channel-wise entropy (Figs. 3 and 6d).
        pooled_entropy: Entropy per channel of all values together, (C,). At least ``entropy``, and
            the only meaningful one for 1x1 feature maps.
        map_entropy: Entropy of each feature map, in the order of the calls, averaged over the
            channels; Fig. 6d shows its distribution for the first layer.
        parameters: The binarizer's learned values, flat: k, b and a of a distribution-adaptive one;
            for others, their floating-point parameters and buffers.
    """

    name: str
    kind: str
    binarizer: str
    bits: int
    calls: int
    share: tuple[float, ...]
    entropy: tuple[float, ...]
    pooled_entropy: tuple[float, ...]
    map_entropy: tuple[float, ...]
    parameters: Mapping[str, tuple[float, ...]]

    @property
    def mean_entropy(self) -> float | None:
        """``entropy`` averaged over the channels; ``None`` if nothing was measured."""
        return _mean(self.entropy)

    @property
    def mean_pooled_entropy(self) -> float | None:
        """``pooled_entropy`` averaged over the channels; ``None`` if nothing was measured."""
        return _mean(self.pooled_entropy)

    @property
    def constant(self) -> int:
        """Number of channels with the same value everywhere."""
        return sum(value == 0 for value in self.pooled_entropy)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; non-finite values become None."""
        return {
            "name": self.name,
            "kind": self.kind,
            "binarizer": self.binarizer,
            "bits": self.bits,
            "calls": self.calls,
            "mean_entropy": self.mean_entropy,
            "mean_pooled_entropy": self.mean_pooled_entropy,
            "constant_channels": self.constant,
            "share": list(self.share),
            "entropy": list(self.entropy),
            "pooled_entropy": list(self.pooled_entropy),
            "map_entropy": list(self.map_entropy),
            "parameters": {name: _finite(values) for name, values in self.parameters.items()},
        }


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A sample's activations before and after binarization, averaged over the channels.

    Attributes:
        batch: Index of its batch.
        sample: Index within the batch.
        entropy: Its entropy averaged over the channels, in bits.
        before: Float activations, (*positions); (C,) if a sample has no positions.
        after: The same after binarization, including scales.
    """

    batch: int
    sample: int
    entropy: float
    before: Tensor
    after: Tensor


@dataclass(frozen=True)
class Inspection(Paged):
    """Information that a network's feature maps keep after binarization.

    Attributes:
        network: Class of the network.
        policy: Name of its policy; ``None`` if it was built by hand.
        batches: Number of batches measured.
        layers: The binary layers in execution order; those that did not run are last.
        maps_of: Name of the layer whose feature maps were kept.
        maps: The feature maps.
    """

    network: str
    policy: str | None
    batches: int
    layers: tuple[LayerInspection, ...]
    maps_of: str | None
    maps: tuple[FeatureMap, ...] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: everything except the values of feature maps."""
        return {
            "network": self.network,
            "policy": self.policy,
            "batches": self.batches,
            "layers": [layer.to_dict() for layer in self.layers],
            "maps_of": self.maps_of,
            "maps": [
                {
                    "batch": kept.batch,
                    "sample": kept.sample,
                    "shape": list(kept.before.shape),
                    "entropy": kept.entropy,
                }
                for kept in self.maps
            ],
        }

    def save(
        self, folder: str | Path, pictures: Sequence[tuple[str, Tensor]] = ()
    ) -> tuple[Path, ...]:
        """Write the numbers (JSON, CSV) and the figures (PNG), all or none.

        Args:
            folder: Output folder, created if needed. Files of an earlier inspection are replaced,
                other files are kept.
            pictures: Name and image (uint8, (3, H, W)) of the first single-sample batches, to show
                beside their feature maps.

        Returns:
            The files.

        Raises:
            FileError: The folder cannot be written.
        """
        from binarize.inspection.files import write

        return write(self, Path(folder), pictures)

    @classmethod
    def load(cls, path: str | Path) -> Inspection:
        """Read what :meth:`save` wrote.

        Args:
            path: The folder, or its ``inspection.json``.

        Raises:
            FileError: There is no inspection, or it is damaged.
        """
        from binarize.inspection.files import read

        return read(Path(path))

    def headline(self) -> str:
        """Return a one-line summary."""
        made = "by hand" if self.policy is None else f"by policy {self.policy!r}"
        batches = "1 batch" if self.batches == 1 else f"{self.batches} batches"
        return f"{self.network}, 1-bit {made}; entropy in bits over {batches}"

    def _page(self) -> str:
        from binarize.inspection.page import inspection_page

        return inspection_page(self)

    def _notebook(self) -> Markup:
        from binarize.inspection.page import notebook_html

        return notebook_html(self)

    def __str__(self) -> str:
        head = self.headline()
        rows = [("Layer", "Binarizer", "Channels", "Constant", "Calls", "Entropy", "Pooled")]
        for layer in self.layers:
            rows.append(
                (
                    layer.name or "(root)",
                    layer.binarizer if layer.bits == 1 else f"{layer.binarizer}, {layer.bits} bits",
                    str(len(layer.entropy)) if layer.entropy else "-",
                    str(layer.constant) if layer.entropy else "-",
                    str(layer.calls),
                    _short(layer.mean_entropy),
                    _short(layer.mean_pooled_entropy),
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [head]
        for row in rows:
            names = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
            numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
            lines.append("  ".join((*names, *numbers)).rstrip())
        return "\n".join(lines)


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _finite(values: Iterable[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
