"""The survey as a Markdown document, summary first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from binarize.survey.case import WILD
from binarize.survey.records import versions
from binarize.survey.row import CONVERTED, NOTHING, ORIGINAL, Row
from binarize.survey.summary import TARGET, Summary, summarize
from binarize.survey.tables import (
    count,
    family_line,
    kept_by_family,
    network_line,
    percent,
    short_name,
    table,
)
from binarize.writing import atomic_write

__all__ = ["write_document"]

_WORDS = """\
Every network is built with random weights, converted by `binarize.convert(model)` with the default
policy and no further arguments, and compared with its original:

- *forward*: at the default size, outputs have the original's structure and shapes.
- *train*: the same in training mode at a second size, odd where the original accepts an odd
  one, and every binary parameter gets a gradient where the original's weight does.
- *reload*: the plan, read back from JSON and applied to a fresh network, gives the same tensors.
- *real*, for one small network of every family: all of this with values, on a small image, plus
  finite gradients and the same outputs after `save` and `load`. Other networks run on the meta
  device, which checks shapes only.

Networks with `+features` (timm's `features_only=True`) and `+aux` (smp's `aux_params`) are checked
like the others. The columns:

- *checks*: `all` means forward, train and reload, followed by the second size (`one size`: the
  original accepts only its own); `real` where values were checked too. Failures are in bold.
- *of all*: fraction of the float network's parameters that become binary. Weights of
  projection shortcuts that a weightless bypass replaces are not counted.
- *of convolutions*: the same for the weights of convolutions and pointwise linear layers.
  *Convolutional* networks have more than half of their weights there.
- *on maps*: the same without layers on 1×1 feature maps (squeeze-excite, a head after global
  pooling): there a convolution is a fully connected layer, and the sign of a single value relative
  to its own mean carries no information.
- *kept*: layers left in float, counted by role (`rules/README.md` lists the roles; `other` layers
  have a custom forward), and their weights. The JSON file has the reasons: each entry of a row's
  `kept` is an index into the table `reasons`, layers, weights, and how many of these weights count
  as convolutions.
- *forwards*: module forwards that were rewritten, and those that could not be ("+2 opaque": they
  run as written; the JSON file has the causes).
- *Params* and *OPs*: as the paper counts them (float + binary / 32, float + binary / 64), before
  and after, for one image of the default size; `?`: an operation cannot be counted.

A network without any layer that the policy binarizes (a pure transformer: its linear layers over
tokens and its attention stay in float unless a rule asks for them) raises an error that says so,
and is counted under *nothing to do*. *Original fails*: the library itself cannot build or run it.
"""


def write_document(path: Path, rows: Sequence[Row], planned: int, command: str) -> None:
    """Write the document.

    Args:
        path: The file to write.
        rows: The rows, in the order of the catalogue.
        planned: Number of networks in the whole survey.
        command: The command that was run, to be shown.
    """
    lines = _lines(rows, planned, command, path.with_suffix(".json").name)
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _lines(rows: Sequence[Row], planned: int, command: str, data: str) -> Iterator[str]:
    summary = summarize(rows, planned)
    using = ", ".join(f"{name} {number}" for name, number in versions().items())
    yield "# Coverage"
    yield ""
    wild = all(row.library == WILD for row in rows) and rows
    what = "the networks in a folder" if wild else "every network of three libraries"
    yield f"What the default policy does with {what}. Written by"
    yield f"`{command}` in {count(summary.seconds / 60)} minutes of processor time, with"
    yield f"{using}."
    yield f"It also writes `{data}`: the same data for programs, with all layers and causes."
    if len(rows) < planned:
        yield ""
        yield f"**Unfinished: {len(rows)} of {planned} networks so far.**"
        yield "The command continues where it stopped; a small network of every family comes first."
    if summary.light:
        yield ""
        full = count(sum("train" in row.checks for row in rows))
        yield "With `--light` one small network of every family is checked in full; for the others,"
        yield "only the output shapes after conversion are compared."
        light = count(summary.light)
        yield f"{full} networks went through all checks; {light} have `forward` under *checks* and"
        yield "no numbers after conversion."
    yield from _summary(rows, summary)
    yield from ("", "## How to read it", "", _WORDS.rstrip())
    yield from _families(rows)
    yield from _kept(rows)
    yield from _original(rows)
    yield from ("", "## Every network")
    for (library, family), members in _grouped(rows).items():
        yield from ("", f"### {short_name(library)}: {family}", "")
        number = f"{count(len(members))} network{'s' * (len(members) > 1)}"
        yield from (f"<details><summary>{number}</summary>", "")
        yield from table(_NETWORK, [network_line(row) for row in members])
        yield from ("", "</details>")


def _summary(rows: Sequence[Row], summary: Summary) -> Iterator[str]:
    yield from ("", "## In short", "")
    lines = []
    for library in dict.fromkeys(row.library for row in rows):
        own = [row for row in rows if row.library == library]
        lines.append(_short(short_name(library), summarize(own, len(own))))
    lines.append(_short("all", summary))
    yield from table(_SHORT, lines)
    yield from ("", "### Failures", "")
    if not summary.failures:
        yield "None."
    for failure in summary.failures:
        yield f"- `{failure['network']}`, {failure['check']}: {failure['cause']}"


def _short(name: str, s: Summary) -> list[str]:
    return [
        name,
        count(s.networks),
        count(s.converted),
        count(s.nothing),
        count(s.original),
        count(s.failed),
        count(s.checks),
        count(s.real),
        f"{s.families_converted} of {s.families}",
        f"{s.target_on_maps} of {s.convolutional}",
        f"{s.target} of {s.convolutional}",
    ]


_SHORT = [
    "library", "networks", "converted", "nothing to do", "original fails", "failed",
    "failed a check", "run with values", "convolutional families converted whole",
    f"≥ {TARGET:.0%} on maps", f"≥ {TARGET:.0%} of convolutions",
]  # fmt: skip
_FAMILY = [
    "family", "networks", "converted", "nothing to do", "original fails", "failures", "of all",
    "of convolutions", "on maps",
]  # fmt: skip
_NETWORK = [
    "network", "of all", "of convolutions", "on maps", "kept", "forwards", "checks", "Params M",
    "OPs G",
]  # fmt: skip


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.library, row.family].append(row)
    return groups


def _families(rows: Sequence[Row]) -> Iterator[str]:
    yield from ("", "## Families", "", "Fractions are the lowest and the highest in the family.")
    yield ""
    groups = _grouped(rows)
    yield from table(_FAMILY, [family_line(*key, members) for key, members in groups.items()])


def _kept(rows: Sequence[Row]) -> Iterator[str]:
    below = [
        row
        for row in rows
        if row.status == CONVERTED and row.convolutional and row.dense_share < TARGET
    ]
    title = f"## Convolutional networks with less than {TARGET:.0%} of their convolutions binary"
    yield from ("", title, "")
    if not below:
        yield "None."
        return
    single = sum(row.map_share >= TARGET for row in below)
    yield f"{len(below)} networks; {single} of them miss it only by layers on 1×1 feature maps."
    yield ""
    yield from table(
        ["family", "networks", "of convolutions", "on maps", "convolution weights kept, by role"],
        kept_by_family(below),
    )
    left = [row for row in below if row.map_share < TARGET]
    if left:
        yield from ("", "Also less on larger feature maps:", "")
        for row in left:
            why = ", ".join(f"{percent(share)} {reason}" for reason, share in _lost(row))
            yield f"- `{row.key}`, {percent(row.map_share)}: {why}"


def _lost(row: Row) -> list[tuple[str, float]]:
    """Why layers on feature maps are kept, with their share of the convolutions, largest first."""
    lost: dict[str, float] = defaultdict(float)
    for group in row.kept:
        if "vector" not in group["roles"]:
            lost[group["reason"]] += group["dense"] / row.dense
    shown = [(reason, share) for reason, share in lost.items() if share >= 0.001]
    return sorted(shown, key=lambda pair: -pair[1])


def _original(rows: Sequence[Row]) -> Iterator[str]:
    lost = [row for row in rows if row.status == ORIGINAL]
    yield from ("", "## Networks that the library itself cannot build or run", "")
    if not lost:
        yield "None."
    causes: dict[str, list[str]] = defaultdict(list)
    for row in lost:
        # Messages that repeat the network's name would each be a cause of their own.
        encoder = row.name.partition("/")[2]
        causes[row.cause.replace(encoder, "...") if encoder else row.cause].append(row.key)
    for cause, keys in causes.items():
        yield f"- {cause} ({count(len(keys))}): {', '.join(f'`{key}`' for key in keys)}"
    nothing = Counter(row.family for row in rows if row.status == NOTHING)
    if nothing:
        yield from ("", "## Nothing to do", "")
        yield "Networks without any layer that the default policy binarizes, by family:"
        yield ", ".join(f"{family} {number}" for family, number in nothing.items()) + "."
