"""Cells and lines of the survey's tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from binarize.survey.row import CONVERTED, NOTHING, ORIGINAL, Row

__all__ = [
    "count",
    "family_line",
    "kept_by_family",
    "network_line",
    "percent",
    "short_name",
    "table",
]

# The most informative role first.
_ROLES = (
    "input",
    "prediction",
    "coordinates",
    "zero",
    "constant",
    "gate",
    "vector",
    "attention",
    "tokens",
    "unused",
)


def count(number: float) -> str:
    """Format a number with thousands separators."""
    return f"{number:,.0f}"


def short_name(library: str) -> str:
    """Return a library's name in network keys."""
    return library if library != "segmentation_models_pytorch" else "smp"


def percent(share: float) -> str:
    """Format a fraction, never rounded up to 100%."""
    return f"{min(share, 0.999 if share < 1 else 1):.1%}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    for line in lines:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"


def family_line(library: str, family: str, rows: Sequence[Row]) -> list[str]:
    """Return the cells of one family."""
    done = [row for row in rows if row.status == CONVERTED]
    return [
        f"{short_name(library)}: {family}",
        count(len(rows)),
        count(len(done)),
        _some(row.status == NOTHING for row in rows),
        _some(row.status == ORIGINAL for row in rows),
        _some(bool(row.failures) for row in rows),
        _range([row.share for row in done]),
        _range([row.dense_share for row in done]),
        _range([row.map_share for row in done]),
    ]


def _some(flags: Iterable[bool]) -> str:
    number = sum(flags)
    return count(number) if number else ""


def _range(shares: Sequence[float]) -> str:
    if not shares:
        return ""
    low, high = percent(min(shares)), percent(max(shares))
    return low if low == high else f"{low} to {high}"


def network_line(row: Row) -> list[str]:
    """Return the cells of one network."""
    name = f"`{row.name}`" + (f" +{row.variant}" if row.variant else "")
    if row.status != CONVERTED:
        return [name, row.status, *[""] * 7]
    opaque = f" +{len(row.opaque)} opaque" if row.opaque else ""
    return [
        name,
        percent(row.share),
        percent(row.dense_share),
        percent(row.map_share),
        _kept(row),
        f"{row.rewritten}{opaque}",
        _checks(row),
        _change(row.params, row.effective_params, 1e6),
        _change(row.reference_ops, row.ops, 1e9) if row.effective_params is not None else "",
    ]


def _checks(row: Row) -> str:
    passed = [name for name, result in row.checks.items() if result == "ok"]
    words = [f"**{name} fails**" for name in row.checks if name not in passed]
    if {"forward", "train", "reload"}.issubset(passed):
        passed = ["all", *(["real"] if "real" in passed else [])]
    size = ""
    if "train" in row.checks:
        size = " " + ("×".join(map(str, row.other_size[-2:])) or "one size")
    return ", ".join(words + passed) + size


def _change(before: float | None, after: float | None, unit: float) -> str:
    if after is None:
        return "?" if before is None else f"{before / unit:.3g}"
    return ("?" if before is None else f"{before / unit:.3g}") + f" → {after / unit:.3g}"


def _kept(row: Row) -> str:
    groups: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for group in row.kept:
        entry = groups[_role(group)]
        entry[0] += group["layers"]
        entry[1] += group["weights"]
    return ", ".join(
        f"{role} {layers} ({_size(weights)})" for role, (layers, weights) in groups.items()
    )


def _role(group: Mapping[str, Any]) -> str:
    return next((role for role in _ROLES if role in group["roles"]), "other")


def _size(weights: int) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if weights >= unit:
            return f"{weights / unit:.3g} {letter}"
    return str(weights)


def kept_by_family(rows: Sequence[Row]) -> Iterator[list[str]]:
    """Yield a line per family on the convolution weights that its networks keep in float."""
    families: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        families[row.library, row.family].append(row)
    for (library, family), members in families.items():
        weights: dict[str, float] = defaultdict(float)
        for row in members:
            for group in row.kept:
                weights[_role(group)] += group["dense"] / row.dense / len(members)
        roles = sorted((role for role in weights if weights[role]), key=lambda r: -weights[r])
        yield [
            f"{short_name(library)}: {family}",
            count(len(members)),
            _range([row.dense_share for row in members]),
            _range([row.map_share for row in members]),
            ", ".join(f"{role} {percent(weights[role])}" for role in roles),
        ]
