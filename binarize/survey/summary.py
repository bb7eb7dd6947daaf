"""What the rows of a survey come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from binarize.survey.row import CONVERTED, FAILED, NOTHING, ORIGINAL, Row

__all__ = ["TARGET", "Summary", "summarize"]

# Share of a convolutional network's convolution weights that is to become binary.
TARGET = 0.95


@dataclass
class Summary:
    """Counts over the rows of one library, or of all.

    Attributes:
        networks: Networks examined.
        planned: Networks that were to be examined.
        converted: Networks that are converted.
        nothing: Networks without a layer that the policy makes binary.
        original: Networks that the library itself cannot build or run.
        failed: Networks that should be converted and are not.
        checks: Networks that are converted, but fail a check.
        light: Networks that were only converted and compared in the shapes of their outputs.
        real: Samples that were run with values too.
        convolutional: Converted networks with more than half of their weights in convolutions.
        target: How many of these reach ``TARGET`` of all convolution weights.
        target_on_maps: How many reach it on maps of more than one position.
        families: Families with a convolutional network.
        families_converted: How many of these have all their convolutional networks converted.
        seconds: Processor time in all.
        failures: ``{"network", "check", "cause"}`` of everything that went wrong.
    """

    networks: int = 0
    planned: int = 0
    converted: int = 0
    nothing: int = 0
    original: int = 0
    failed: int = 0
    checks: int = 0
    light: int = 0
    real: int = 0
    convolutional: int = 0
    target: int = 0
    target_on_maps: int = 0
    families: int = 0
    families_converted: int = 0
    seconds: float = 0.0
    failures: list[dict[str, str]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def summarize(rows: Sequence[Row], planned: int) -> Summary:
    """Count.

    Args:
        rows: The rows.
        planned: How many there were to be.
    """
    counted = {status: sum(row.status == status for row in rows) for status in _STATUSES}
    dense = [row for row in rows if row.convolutional and row.status == CONVERTED]
    # A network that fails is not known to be no convolutional one.
    bad = {(r.library, r.family) for r in rows if r.failures or _is_lost(r)}
    families = {(r.library, r.family) for r in rows if r.convolutional or r.status == FAILED}
    return Summary(
        networks=len(rows),
        planned=planned,
        converted=counted[CONVERTED],
        nothing=counted[NOTHING],
        original=counted[ORIGINAL],
        failed=counted[FAILED],
        checks=sum(row.status == CONVERTED and bool(row.failures) for row in rows),
        light=sum(row.light for row in rows),
        real=sum("real" in row.checks for row in rows),
        convolutional=len(dense),
        target=sum(row.dense_share >= TARGET for row in dense),
        target_on_maps=sum(row.map_share >= TARGET for row in dense),
        families=len(families),
        families_converted=len(families - bad),
        seconds=round(sum(row.seconds for row in rows), 1),
        failures=[
            {"network": row.key, "check": check, "cause": cause}
            for row in rows
            for check, cause in row.failures.items()
        ],
    )


_STATUSES = (CONVERTED, NOTHING, ORIGINAL, FAILED)


def _is_lost(row: Row) -> bool:
    """Whether nothing is binary in a network that is made of convolutions."""
    return row.status == NOTHING and row.convolutional
