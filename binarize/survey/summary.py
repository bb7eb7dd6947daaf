"""Summarize the rows of a survey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from binarize.survey.row import CONVERTED, FAILED, NOTHING, ORIGINAL, Row

__all__ = ["TARGET", "Summary", "summarize"]

# Target for the binary fraction of a convolutional network's convolution weights.
TARGET = 0.95


@dataclass
class Summary:
    """Counts over the rows of one library, or of all.

    Attributes:
        networks: Networks examined.
        planned: Networks in the whole survey.
        converted: Networks that are converted.
        nothing: Networks without any layer that the policy binarizes.
        original: Networks that the library itself cannot build or run.
        failed: Networks that could not be converted.
        checks: Converted networks that fail a check.
        light: Networks of which only output shapes were compared.
        real: Samples that were also run with values.
        convolutional: Converted networks with more than half of their weights in convolutions.
        target: How many of these reach ``TARGET`` of all convolution weights.
        target_on_maps: How many reach it on feature maps larger than 1x1.
        families: Families with a convolutional network.
        families_converted: How many of these have all their convolutional networks converted.
        seconds: Total processor time.
        failures: ``{"network", "check", "cause"}`` of all failures.
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
    """Count rows.

    Args:
        rows: The rows.
        planned: Number of networks in the whole survey.
    """
    counted = {status: sum(row.status == status for row in rows) for status in _STATUSES}
    dense = [row for row in rows if row.convolutional and row.status == CONVERTED]
    # A failed network may have been a convolutional one.
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
    """Return whether nothing is binary in a convolutional network."""
    return row.status == NOTHING and row.convolutional
