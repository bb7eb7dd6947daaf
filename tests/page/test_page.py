"""Pages: whole, well-formed, self-contained, and escaped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import FileError
from binarize.page import Cell, Markup, Node, Tile, element, flow_chart, table, treemap, write_page
from binarize.report import Frontier, Point, Row, Sensitivity, SiteSensitivity
from binarize.report.page import TREATMENTS, _rows, report_page, treatment

VOID = {"br", "col", "hr", "img", "input", "meta"}
NASTY = "<script>alert(1)</script>&\"'"


class Parsed(HTMLParser):
    """All elements of a page; fails where one is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, *attributes: str) -> Iterator[str]:
        for _, held in self.elements:
            yield from (held[name] or "" for name in attributes if name in held)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


class Odd(nn.Module):
    """Layers with names that need escaping, one that is called twice, branches that meet."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                "stem": nn.Conv2d(3, 8, 3, padding=1),
                "<script>alert(1)</script>": nn.Conv2d(8, 8, 3, padding=1),
                "twice": nn.Conv2d(8, 8, 3, padding=1),
                "head": nn.Conv2d(16, 2, 1),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        stem, odd, twice, head = self.layers.values()
        x = stem(x)
        y = twice(twice(torch.relu(odd(x))))
        return head(torch.cat([x, y], 1))


@pytest.fixture(scope="module")
def report() -> binarize.Report:
    image = torch.zeros(1, 3, 10, 14)
    return binarize.report(binarize.convert(Odd(), example_inputs=image))


def self_contained(text: str) -> Parsed:
    """Parse a page, which must ask for nothing but itself."""
    page = Parsed(text)
    for address in page.values("src", "href"):
        assert address.startswith(("#", "data:image/png;base64,")), address
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    ids = list(page.values("id"))
    assert len(set(ids)) == len(ids)
    for link in page.values("href"):
        assert link[1:] in ids, link
    assert any("default-src 'none'" in value for value in page.values("content"))
    return page


def test_report_page_shows_every_row_once(report: binarize.Report, tmp_path: Path) -> None:
    path = report.to_html(tmp_path / "page.html")
    page = self_contained(path.read_text(encoding="utf-8"))
    assert page.count("tr") == 1 + len(report.layers)
    for i, row in enumerate(report.layers):
        assert f"row{i}" in page.values("id")
        assert row.name in page.text
        assert row.reason in page.text
        assert row.rule in page.text
    assert page.count("script") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert 'name = "bidense"' in page.text
    assert "[[rules]]" in page.text  # all of the policy, not what it inherits from


def test_network_is_drawn_call_by_call(report: binarize.Report) -> None:
    names = [node.name for node in report.flow]
    assert names == [
        *("input", "layers.stem", "layers.<script>alert(1)</script>"),
        *("layers.twice", "layers.twice", "cat", "layers.head", "output"),
    ]
    assert [node.inputs for node in report.flow] == [
        *((), (0,), (1,), (2,), (3,), (1, 4), (5,), (6,))
    ]


def test_report_without_inputs_or_policy_has_a_page(tmp_path: Path) -> None:
    text = binarize.report(Odd()).to_html(tmp_path / "float.html").read_text(encoding="utf-8")
    page = self_contained(text)
    assert "unknown" in page.text
    assert 'id="network"' not in text
    assert 'id="policy"' not in text
    empty = binarize.report(nn.Identity()).to_html(tmp_path / "empty.html")
    self_contained(empty.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("policy", "expected"), [("bidense", "bit"), ("lqnet", "bits")])
def test_treatments(policy: str, expected: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    binary = binarize.convert(net, policy=policy, example_inputs=torch.zeros(1, 3, 8, 8))
    rows = {row.name: treatment(row) for row in binarize.report(binary).layers}
    assert rows["2"] == expected
    assert rows["0"] == rows["3"] == "float"
    assert rows["header and metadata"] == "none"
    assert treatment(Row("a", "layer", "Conv2d", decision="bypass")) == "bypass"
    assert treatment(Row("a", "layer", "Conv2d", decision="remove")) == "none"


def test_bars_show_shares_of_the_float_network(report: binarize.Report) -> None:
    page = report_page(report)
    bars = [float(width) for width in re.findall(r'<rect width="([^"]*)" height="8"', page)]
    pairs = (
        (report.params, report.reference_params),
        (report.file_bytes, report.reference_bytes),
        (report.ops, report.reference_ops),
    )
    shares = [after / before for after, before in pairs if after and before]
    assert bars == pytest.approx([100 * min(share, 1) for share in shares], abs=0.006)
    assert [f"{share:.1%} of the float network" in page for share in shares] == [True] * 3
    # Without a size of the input, operations are unknown: no bar.
    page = report_page(binarize.report(Odd()))
    bars = [float(width) for width in re.findall(r'<rect width="([^"]*)" height="8"', page)]
    assert bars[0] == 100
    assert bars[2] == 0


def test_the_table_names_treatments(report: binarize.Report) -> None:
    layers = (
        replace(report.layers[1], decision="remove"),
        replace(report.layers[1], decision="binarize"),
    )
    removed, kept = _rows(replace(report, layers=layers), links=False)
    assert "removed" in [cell.text for cell in removed[1]]
    assert TREATMENTS[treatment(layers[1])] in [cell.text for cell in kept[1]]


def test_plan_page_shows_all_decisions(tmp_path: Path) -> None:
    plan = binarize.plan(Odd(), example_inputs=torch.zeros(1, 3, 8, 8))
    page = self_contained(plan.to_html(tmp_path / "plan.html").read_text(encoding="utf-8"))
    assert page.count("tr") == 1 + len(plan.decisions)
    assert all(decision.site in page.text for decision in plan.decisions)
    # Columns are sorted by number.
    weights = [repr(float(decision.weights)) for decision in plan.layers]
    assert list(page.values("data-value")) == weights


def test_inspection_page(tmp_path: Path) -> None:
    net = binarize.convert(Odd(), example_inputs=torch.zeros(1, 3, 8, 8))
    found = binarize.inspect(net, [torch.randn(2, 3, 8, 8)])
    page = self_contained(found.to_html(tmp_path / "inspection.html").read_text(encoding="utf-8"))
    assert page.count("tr") == 1 + len(found.layers)
    assert page.count("img") >= 1


def sensitivity(rows: int) -> Sensitivity:
    sites = tuple(
        SiteSensitivity(f"{NASTY}.{i}", "Conv2d", (8, 8), "binarize", None, None, None, i, None, 0)
        for i in range(rows)
    )
    return Sensitivity(
        *("Net", "bidense", "alone", False, None, None, None, None, None, 4, 4, 2, sites)
    )


def frontier(points: int) -> Frontier:
    return Frontier(
        *("Net", "mIoU", True, "1×3×8×8", NASTY),
        (
            Point("float", "float", {"val": 0.51, "test": 0.5}, (0.01,), 9_000_000),
            *(
                Point(f"{NASTY}.{i}", "binarized", {"test": 0.5 - i}, (0.001 * (i + 1),), 80_000)
                for i in range(points - 1)
            ),
        ),
    )


@pytest.mark.parametrize("rows", [0, 2])
def test_sensitivity_page(rows: int, tmp_path: Path) -> None:
    result = sensitivity(rows)
    page = self_contained(result.to_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.count("tr") == 1 + rows
    assert page.count("script") == 1


@pytest.mark.parametrize("points", [1, 3])
def test_frontier_page(points: int, tmp_path: Path) -> None:
    result = frontier(points)
    page = self_contained(result.to_html(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert page.count("tr") == 1 + points
    assert page.count("script") == page.count("img") == 1
    assert all(line in page.text for line in (*result.advice().splitlines(), result.headline()))
    assert all(cell in page.text for row in result.rows() for cell in row)
    if points > 1:  # columns sort as numbers, factors too
        assert {"9.0", "10.0", "112.5"} <= set(page.values("data-value"))


def test_notebooks_get_static_tables(report: binarize.Report) -> None:
    plan = binarize.plan(Odd(), example_inputs=torch.zeros(1, 3, 8, 8))
    net = binarize.convert(Odd(), example_inputs=torch.zeros(1, 3, 8, 8))
    inspection = binarize.inspect(net, [torch.randn(2, 3, 8, 8)])
    for shown, rows in (
        (inspection, len(inspection.layers)),
        (report, len(report.layers)),
        (plan, len(plan.decisions)),
        (sensitivity(0), 0),
        (sensitivity(3), 3),
        (frontier(1), 1),
        (frontier(3), 3),
    ):
        text = shown._repr_html_()
        page = Parsed(text)
        assert page.count("tr") >= 1 + rows
        assert not {"script", "button", "input", "style"} & {tag for tag, _ in page.elements}
        assert not list(page.values("href", "src", "onclick"))


def test_text_and_attributes_are_escaped() -> None:
    made = element("p", NASTY, element("b", NASTY), title=NASTY, hidden=True, id=None)
    page = Parsed(made)
    assert page.text == 2 * NASTY
    assert page.elements == [("p", {"title": NASTY, "hidden": None}), ("b", {})]
    assert Parsed(table("t", [NASTY], [(None, [Cell(NASTY, link=f"#{NASTY}")])])).count("b") == 0
    assert element("p", Markup("<b></b>")) == "<p><b></b></p>"


def test_page_is_written_whole_or_not_at_all(
    report: binarize.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(self: Path, text: str, encoding: str) -> None:
        with open(self, "w") as file:
            file.write(text[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(FileError, match="No space left on device"):
            report.to_html(path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(FileError, match="cannot be written"):
        write_page("text", tmp_path / "missing" / "page.html")


def number(page: Parsed, tag: str, name: str) -> list[float]:
    return [float(held[name] or 0) for kind, held in page.elements if kind == tag]


@pytest.mark.parametrize(
    "sizes", [[], [0], [5], [1, 1, 1], [1e9, 1, 0, 3], list(range(40))], ids=str
)
def test_treemap_areas_are_in_proportion(sizes: list[float]) -> None:
    tiles = [Tile(f"net{i % 3}.{i}", size, str(size), "bit") for i, size in enumerate(sizes)]
    page = Parsed(treemap(tiles, "sizes"))
    widths, heights = number(page, "rect", "width"), number(page, "rect", "height")
    drawn = [size for size in sizes if size > 0]
    assert len(widths) == len(drawn)
    if len(drawn) == 3:
        areas = sorted(w * h for w, h in zip(widths, heights, strict=True))
        assert areas[-1] < 1.1 * areas[0] or drawn != [1, 1, 1]
    for side, origin, limit in ((widths, "x", 1000), (heights, "y", 420)):
        for start, length in zip(number(page, "rect", origin), side, strict=True):
            assert start >= 0
            assert start + length <= limit + 0.1


@pytest.mark.parametrize(
    "inputs",
    [[], [()], [(), (0,), (0,), (1, 2)], [(), (0,), (1,), (0, 2), (0, 0, 3)], [(), ()]],
    ids=str,
)
def test_flow_chart_puts_nodes_below_their_inputs(inputs: list[tuple[int, ...]]) -> None:
    nodes = [Node(NASTY, NASTY, "bit", some) for some in inputs]
    page = Parsed(flow_chart(nodes, "network"))
    x, y = number(page, "rect", "x"), number(page, "rect", "y")
    assert len({*zip(x, y, strict=True)}) == len(nodes)
    for i, some in enumerate(inputs):
        assert all(y[source] < y[i] for source in some)
    assert page.count("path") == 1 + sum(len(set(some)) for some in inputs)


def test_command_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from binarize.cli import main

    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),"
        " nn.Conv2d(8, 2, 1))\n"
    )
    words = ["report", "net.py:make", "--policy", "bidense", "--size", "24x16"]
    assert main([*words, "--html", "page.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["html"] == "page.html"
    self_contained(Path("page.html").read_text(encoding="utf-8"))
    run: Callable[[list[str]], int] = main
    assert run([*words, "--html", "page.html", "--packed"]) != 0
    assert "html" in capsys.readouterr().err


def test_flow_chart_keeps_branches_in_columns_of_their_own() -> None:
    # Two branches of two nodes each, beside a long line from the second node to the last.
    inputs = [(), (0,), (1,), (1,), (2,), (3,), (4, 5), (1, 6)]
    page = Parsed(flow_chart([Node("n", "", "bit", some) for some in inputs], "network"))
    x = number(page, "rect", "x")
    assert x[0] == x[1] == x[2] == x[4] == x[6] == x[7]
    assert x[3] == x[5] != x[2]
    # A branch that is read much later keeps its column free until then.
    inputs = [(), (0,), (0,), (1,), (3,), (3,), (4, 5), (6, 2)]
    page = Parsed(flow_chart([Node("n", "", "bit", some) for some in inputs], "network"))
    x = number(page, "rect", "x")
    assert x[2] > x[1]
    assert x[5] > x[2]
