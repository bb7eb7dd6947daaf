"""The survey for people: a Markdown document with the summary on top."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from binarize.survey.catalogue import LIBRARIES
from binarize.survey.records import versions
from binarize.survey.row import CONVERTED, NOTHING, ORIGINAL, Row
from binarize.survey.summary import TARGET, Summary, summarize
from binarize.survey.tables import count, family_line, kept_by_family, network_line, percent, table

__all__ = ["write_document"]

_WORDS = """\
- *Converted*: `binarize.convert(model)` with the default policy and no further arguments. A network
  without a layer that this policy makes binary (a pure transformer: its linear layers over tokens
  and its attention are left alone unless a rule asks for them) gets an error that says so, and is
  counted under *nothing to do*. *Original fails*: the library itself cannot build or run it.
- *of all*: share of the float network's parameters that are binary afterwards. Weights of
  projection shortcuts, which a bypass without weights replaces, count nowhere.
- *of convolutions*: the same, of the weights of convolutions and of linear layers used as such on
  maps; a convolution on a map of one position counts too, though it is kept by the contract.
- *on maps*: the same without the layers that only see one position (squeeze-excite, a head behind
  global pooling): there a convolution is a fully connected layer, and the sign of one value against
  its own mean says nothing.
- *Convolutional*: more than half of the weights are in convolutions, counted as above.
- *kept*: what is left in float: number of layers by what they do (`rules/README.md` lists these
  roles; `other` layers have a forward of their own), and their weights. Weights that no layer
  holds, such as those that a forward hands to a function itself (`CondConv2d` in the `cc` networks
  of efficientnet), stay as they are and count under *of all* only.
- *forwards*: module forwards that were rewritten, and those that could not be ("+2 opaque": they
  run as written; the JSON file has the causes).
- *forward*: at the default size the outputs have the original's structure and shapes. *train*: so
  they have in training mode at the second size, odd where the original accepts an odd one, and
  every binary parameter gets a gradient. *reload*: the plan read from JSON and carried out on a
  fresh network gives the same tensors. *real*: all of it with values, on a small image: finite
  gradients, and the same outputs after `save` and `load`; without that mark the checks ran on
  tensors without storage. `+features` is timm's `features_only=True`, `+aux` smp's `aux_params`:
  the first gets the check *forward* only.
- *Params* and *OPs*: as the paper counts them (float + binary / 32, float + binary / 64), before
  and after, one image of the default size; `?`: not known, an operation in it cannot be counted.
"""


def write_document(path: Path, rows: Sequence[Row], planned: int, command: str) -> None:
    """Write the document.

    Args:
        path: Where to.
        rows: The rows, in the order of the catalogue.
        planned: How many networks there were to be.
        command: The command that made it, for the reader.
    """
    path.write_text("\n".join(_lines(rows, planned, command)) + "\n", encoding="utf-8")


def _lines(rows: Sequence[Row], planned: int, command: str) -> Iterator[str]:
    summary = summarize(rows, planned)
    using = ", ".join(f"{name} {number}" for name, number in versions().items())
    yield "# Coverage"
    yield ""
    yield f"What the default policy makes of every network of three libraries, by `{command}` with"
    yield f"{using}. {count(summary.seconds / 60)} minutes of processor time. `coverage.json` holds"
    yield "the same for programs, with the layers and causes in full."
    if len(rows) < planned:
        yield ""
        yield f"**Not finished: {len(rows)} of {planned} networks were examined so far.**"
        yield "The command goes on where it stopped; a small network of every family comes first."
    if summary.light:
        yield ""
        yield f"{count(summary.light)} of them were converted and compared in the shapes of their"
        yield "outputs only (`--light`); the cells of the other checks are empty."
    yield from _summary(rows, summary)
    yield from ("", "## How to read it", "", _WORDS.rstrip())
    yield from _families(rows)
    yield from _kept(rows)
    yield from _original(rows)
    yield from ("", "## Every network")
    for (library, family), members in _grouped(rows).items():
        yield from ("", f"### {library}: {family}", "")
        yield from table(_NETWORK, [network_line(row) for row in members])


def _summary(rows: Sequence[Row], summary: Summary) -> Iterator[str]:
    yield from ("", "## In short", "")
    lines = []
    for library in LIBRARIES:
        own = [row for row in rows if row.library == library]
        if own:
            lines.append(_short(library, summarize(own, len(own))))
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
    "network", "converted", "of all", "of convolutions", "on maps", "kept", "forwards", "forward",
    "train", "reload", "real", "Params M", "OPs G",
]  # fmt: skip


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.library, row.family].append(row)
    return groups


def _families(rows: Sequence[Row]) -> Iterator[str]:
    yield from ("", "## Families", "", "Shares are the lowest and the highest in the family.")
    yield ""
    groups = _grouped(rows)
    yield from table(_FAMILY, [family_line(*key, members) for key, members in groups.items()])


def _kept(rows: Sequence[Row]) -> Iterator[str]:
    below = [
        row
        for row in rows
        if row.status == CONVERTED and row.convolutional and row.dense_share < TARGET
    ]
    yield from ("", f"## Convolutional networks under {TARGET:.0%} of their convolutions", "")
    if not below:
        yield "None."
        return
    single = sum(row.map_share >= TARGET for row in below)
    yield f"{len(below)} networks; in {single} of them what is missing works on one position."
    yield ""
    yield from table(
        ["family", "networks", "of convolutions", "on maps", "convolution weights kept, by role"],
        kept_by_family(below),
    )
    left = [row for row in below if row.map_share < TARGET]
    if left:
        yield from ("", "Under it on maps too:", "")
        for row in left:
            lost = [g for g in row.kept if g["dense"] and "vector" not in g["roles"]]
            why = "; ".join(
                f"{g['layers']}× {percent(g['dense'] / row.dense)} {g['reason']}" for g in lost
            )
            yield f"- `{row.key}`, {percent(row.map_share)}: {why}"


def _original(rows: Sequence[Row]) -> Iterator[str]:
    lost = [row for row in rows if row.status == ORIGINAL]
    yield from ("", "## The library itself fails", "")
    if not lost:
        yield "None."
    causes: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in lost:
        causes[row.family, row.cause].append(f"`{row.key}`")
    for (_, cause), names in causes.items():
        yield f"- {', '.join(names)}: {cause}"
    nothing = Counter(row.family for row in rows if row.status == NOTHING)
    if nothing:
        yield from ("", "## Nothing to do", "")
        yield "Networks without a layer that the default policy makes binary, by family: "
        yield ", ".join(f"{family} {number}" for family, number in nothing.items()) + "."
