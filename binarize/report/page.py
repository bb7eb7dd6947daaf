"""A report as an HTML page, and as the small table of a notebook."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from binarize.page import (
    Cell,
    Markup,
    Node,
    Section,
    Tile,
    document,
    element,
    flow_chart,
    folded,
    notebook_view,
    table,
    treemap,
)
from binarize.report.numbers import Report, Row, readable

__all__ = ["TREATMENTS", "notebook_html", "report_page", "treatment"]

# CSS class of each treatment, and what it is called.
TREATMENTS = {
    "bit": "1-bit",
    "bits": "several bits",
    "int8": "8-bit",
    "float": "float",
    "bypass": "bypass",
    "none": "removed or no layer",
}
_HEADS = (
    *("Layer", "Kind", "Shape", "Treatment", "W/A bits", "Params", "Operations", "Bytes"),
    *("Calls", "Decision", "Reason", "Rule"),
)


def treatment(row: Row) -> str:
    """How a row is computed, a key of :data:`TREATMENTS`."""
    if row.decision == "bypass":
        return "bypass"
    if row.part == "file" or row.decision == "remove":
        return "none"
    bits = (row.weight_bits, row.activation_bits)
    if bits == (1, 1):
        return "bit"
    if row.int8_params:
        return "int8"
    return "bits" if row.binary_params else "float"


def report_page(
    report: Report, measured: Sequence[Section] = (), more: Sequence[Section] = ()
) -> str:
    """The page: totals, layers, treemaps, the network as a graph, the policy.

    Args:
        report: The report.
        measured: Further sections, after the totals.
        more: Further sections, after the layers.
    """
    made = "float" if report.policy is None else f"1-bit by policy {report.policy}"
    summary = f"{made}; operations for {report.inputs}" if report.inputs else made
    sections = [Section("totals", "Totals", _totals(report)), *measured]
    sections.append(Section("sizes", "Size and cost", _treemaps(report)))
    if report.flow:
        sections.append(Section("network", "Network", _network(report)))
    sections += [Section("layers", "Layers", _layers(report)), *more]
    if report.policy_text:
        text = element("pre", element("code", report.policy_text), tabindex=0)
        sections.append(Section("policy", "Policy", text))
    return document(report.network, summary, sections)


def notebook_html(report: Report) -> Markup:
    """Totals and layers as static tables.

    Args:
        report: The report.
    """
    heads = ("", "float network", "this network", "factor")
    rows = [
        (None, [Cell(name), *(Cell(text, numeric=True) for text in texts)])
        for name, *texts in _compared(report)
    ]
    columns = _HEADS[:8] + _HEADS[9:11]
    layers = [(None, [*cells[:8], *cells[9:11]]) for _, cells in _rows(report, links=False)]
    details = folded(f"{len(report.layers)} rows", table("", columns, layers, static=True))
    policy = f", policy {report.policy or 'none'}"
    title = element("span", element("strong", report.network), policy)
    return notebook_view(title, table("", heads, rows, static=True), details)


def _compared(report: Report) -> list[tuple[str, str, str, str]]:
    """Name, the float network's number, this network's, and the factor between them."""
    numbers: tuple[tuple[str, float | None, float | None, str], ...] = (
        ("Parameters", report.reference_params, report.params, ""),
        ("File", report.reference_bytes, report.file_bytes, "B"),
        ("Operations", report.reference_ops, report.ops, ""),
    )
    rows = []
    for name, before, after, unit in numbers:
        factor = f"{before / after:.2f}×" if before is not None and after else ""
        rows.append((name, readable(before, unit), readable(after, unit), factor))
    return rows


def _totals(report: Report) -> Markup:
    shares = (
        _share(report.params, report.reference_params),
        _share(report.file_bytes, report.reference_bytes),
        _share(report.ops, report.reference_ops),
    )
    details = (
        f"{readable(report.binary_params)} binary (counted as 1/32), "
        f"{_eight(report.int8_params, 4)}{readable(report.float_params)} float",
        f"{report.file_bytes:,} bytes in the file",
        _operations(report),
    )
    cards = []
    for (name, before, after, factor), share, detail in zip(
        _compared(report), shares, details, strict=True
    ):
        smaller = f" ({factor} smaller)" if factor and report.policy is not None else ""
        bar = element("rect", width=f"{100 * min(share or 0, 1):.2f}", height=8)
        cards.append(
            element(
                "div",
                element("h3", name),
                element("p", after, class_="big"),
                element("p", f"float network: {before}{smaller}"),
                element("p", detail),
                element(
                    "svg",
                    element("title", "" if share is None else f"{share:.1%} of the float network"),
                    bar,
                    viewBox="0 0 100 8",
                    preserveAspectRatio="none",
                ),
                class_="card",
            )
        )
    notes = element("ul", *(element("li", note) for note in report.notes)) if report.notes else ""
    return Markup(element("div", *cards, class_="cards") + notes)


def _operations(report: Report) -> str:
    if not report.inputs:
        return "unknown: they need the size of an input"
    binary, rest = readable(report.binary_ops), readable(report.float_ops)
    eight = _eight(report.int8_ops, 8)
    return f"{binary} binary (counted as 1/64), {eight}{rest} float"


def _eight(count: int | None, weight: int) -> str:
    return f"{readable(count)} 8-bit (counted as 1/{weight}), " if count else ""


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


def _legend() -> Markup:
    tags = (element("span", words, class_=f"tag {mark}") for mark, words in TREATMENTS.items())
    return element("ul", *(element("li", tag) for tag in tags), class_="legend")


def _treemaps(report: Report) -> Markup:
    def tiles(value: Callable[[Row], float | None], unit: str) -> list[Tile]:
        return [
            Tile(row.name, value(row) or 0, readable(value(row), unit), treatment(row), f"#row{i}")
            for i, row in enumerate(report.layers)
        ]

    parts = [_legend(), element("h3", "Bytes in the file")]
    parts.append(treemap(tiles(lambda row: row.bytes, "B"), "Bytes of each layer"))
    if report.inputs:
        parts.append(element("h3", "Operations (a binary one counts 1/64)"))
        parts.append(treemap(tiles(lambda row: row.ops, ""), "Operations of each layer"))
    return Markup("".join(parts))


def _network(report: Report) -> Markup:
    known = {row.name: i for i, row in enumerate(report.layers)}
    nodes = []
    seen: set[str] = set()
    for node in report.flow:
        place = known.get(node.name) if node.kind == "layer" else None
        row = None if place is None else report.layers[place]
        size = "×".join(map(str, node.shape))
        bits = "" if row is None else f"{TREATMENTS[treatment(row)]}, {row.reason or row.kind}, "
        nodes.append(
            Node(
                name=node.name,
                detail=f"{bits}output {size}",
                mark="none" if row is None else treatment(row),
                inputs=node.inputs,
                # A layer that is called several times is led to at its first call.
                id=None if place is None or node.name in seen else f"node{place}",
                link=None if place is None else f"#row{place}",
            )
        )
        seen.add(node.name)
    buttons = [
        element("button", text, type="button", data_zoom=step, aria_label=label)
        for text, step, label in (
            ("+", "1.25", "Zoom in"),
            ("\N{MINUS SIGN}", "0.8", "Zoom out"),
            ("1:1", "0", "Original size"),
        )
    ]
    chart = flow_chart(nodes, "The network: layers from input to output")
    return Markup(
        _legend()
        + element("p", *buttons, class_="zoom", hidden=True)
        + element("div", chart, class_="scroll", tabindex=0, role="region", aria_label="Network")
    )


def _layers(report: Report) -> Markup:
    return table("layer-table", _HEADS, _rows(report, links=True))


def _rows(report: Report, *, links: bool) -> list[tuple[str | None, list[Cell]]]:
    drawn = {node.name for node in report.flow if node.kind == "layer"} if links else set()
    rows: list[tuple[str | None, list[Cell]]] = []
    for i, row in enumerate(report.layers):
        mark = treatment(row)
        bits = "" if row.weight_bits is None else f"{row.weight_bits}/{row.activation_bits}"
        shape = "×".join(map(str, row.shape))
        treated = "" if row.part == "file" else "removed" if mark == "none" else TREATMENTS[mark]
        cells = [
            Cell(row.name, link=f"#node{i}" if row.name in drawn else None),
            Cell(row.kind),
            Cell(shape),
            Cell(treated, mark=mark if links and treated else None),
            Cell(bits, row.weight_bits, numeric=True),
            Cell(readable(row.params), row.params),
            Cell(readable(row.ops), row.ops, numeric=True),
            Cell(readable(row.bytes, "B"), row.bytes),
            Cell("" if row.calls is None else str(row.calls), row.calls, numeric=True),
            Cell(row.decision),
            Cell(row.reason),
            Cell(row.rule),
        ]
        rows.append((f"row{i}" if links else None, cells))
    return rows
