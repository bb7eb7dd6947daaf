"""What is printed: the whole text, at the widths that terminals have."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import binarize
from binarize.report import Report, Row
from binarize.report.numbers import readable


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Sequential(
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(torch.relu(self.norm(self.stem(x)))))


@pytest.fixture
def report() -> Report:
    image = torch.zeros(1, 3, 32, 32)
    return binarize.report(binarize.convert(Net(), example_inputs=image), image)


def printed(view: object, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(view)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


def test_in_80_columns(report: Report) -> None:
    lines = printed(report, 80)

    header = next(row for row in report.layers if row.part == "file").bytes
    total = report.file_bytes
    assert (
        lines
        == f"""\
Net, 1-bit by policy 'bidense', operations for 1×3×32×32

 Layer                        Decision  W/A bits  Params      OPs    Bytes  Why
 ──────────────────────────────────────────────────────────────────────────────
 stem                         keep      32/32        448  442.4 K  1.792 K  1
 body.0                       binarize  1/1          241  18.43 K  1.356 K  2
 head                         keep      32/32        132  32.77 K      528  3
 other norms (1)                                      32        0      264
 activations (1)              replace                 96        0      384  4
 header and metadata                                   0        0  {readable(header)}


 Total     1-bit    float  counted as  float network  smaller
 ────────────────────────────────────────────────────────────
 Params  4.608 K      805         949        5.284 K    5.57×
 OPs     1.180 M  475.1 K     493.6 K        1.655 M    3.35×
 File                        {readable(total, "B")}       21.54 KB    {21536 / total:.2f}×

1 keep (1): reads the image: too few channels for 1-bit activations [role=input
-> keep]
2 binarize (1): convolution or pointwise linear layer [any layer -> binarize]
3 keep (1): produces the prediction [role=prediction -> keep]
4 replace (1): follows a binary layer; becomes shifted-prelu [contract]
activations: 1 replaced, 1 kept""".splitlines()
    )


def test_in_160_columns(report: Report) -> None:
    lines = printed(report, 160)

    body = next(line for line in lines if line.startswith(" body.0"))
    assert (
        body.split()
        == (
            "body.0 Conv2d 32×16×3×3 binarize 1/1 241 18.43 K 1.356 K "
            "2 convolution or pointwise linear layer"
        ).split()
    )
    assert "Kind" in lines[2]
    assert "Shape" in lines[2]
    assert max(map(len, lines)) <= 160


@pytest.mark.parametrize("width", [48, 60, 72, 80, 100, 112, 140, 150, 250])
def test_no_line_is_too_long_and_no_number_is_cut(report: Report, width: int) -> None:
    lines = printed(report, width)

    assert max(map(len, lines)) <= width
    body = next(line for line in lines if "18.43 K" in line)
    assert "1.356 K" in body


def test_printing_follows_the_terminal(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    assert str(report).splitlines() == printed(report, 80)
    assert "\x1b" not in str(report)
    assert str(report.table(1)).splitlines() == printed(report.table(1), 80)


def test_what_is_unknown_is_said() -> None:
    lines = printed(binarize.report(Net()), 80)

    assert next(line for line in lines if line.startswith(" OPs")).split()[1:] == ["unknown"] * 5
    assert lines[-1] == "OPs are unknown: they need example inputs"


def test_float_network_has_no_decisions() -> None:
    lines = printed(binarize.report(Net(), torch.zeros(1, 3, 32, 32)), 80)

    assert lines[0] == "Net, float, operations for 1×3×32×32"
    assert "Decision" not in lines[2]
    assert "Why" not in lines[2]
    assert lines[-1] == ""


def test_layers_are_told_together() -> None:
    network = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()) for _ in range(4)))
    outer = nn.Sequential(nn.Conv2d(3, 4, 1), network, nn.Conv2d(4, 2, 1))
    report = binarize.report(
        binarize.convert(outer, example_inputs=torch.zeros(1, 3, 32, 32)), torch.zeros(1, 3, 32, 32)
    )
    lines = printed(report.table(1), 100)

    group = next(line for line in lines if line.startswith(" 1 (4 layers)"))
    rows = [row for row in report.layers if row.name.startswith("1.") and row.part == "layer"]
    assert readable(sum(row.ops or 0 for row in rows)) in group
    assert "binarize" in group
    assert len([line for line in printed(report.table(2), 100) if line.startswith(" 1.")]) == 4


def test_names_are_not_markup_and_keep_their_ends() -> None:
    names = ("blocks.[red]odd", "a" * 90 + ".the_end", "shared")
    rows = tuple(
        Row(name, "layer", "Conv2d", (1, 1, 1, 1), "keep", "why", "rule", 32, 32, 1, 0, 5, 0, 4, n)
        for n, name in enumerate(names, 1)
    )
    report = Report("Net", "own", "1×1", rows, 100, 3, 15, 12)

    text = "\n".join(printed(report, 80))

    assert "blocks.[red]odd" in text
    assert "a.the_end ×2" in text
    assert "shared ×3" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "unknown"),
        (0, "0"),
        (7, "7"),
        (35.125, "35.1"),
        (999, "999"),
        (1000, "1.000 K"),
        (9_999.4, "9.999 K"),
        (9_999.6, "10.00 K"),
        (99_996, "100.0 K"),
        (999_949, "999.9 K"),
        (999_960, "1.000 M"),
        (39_759_840, "39.76 M"),
        (5.532e9, "5.532 G"),
        (2.5e12, "2.500 T"),
    ],
)
def test_readable(number: float | None, text: str) -> None:
    assert readable(number) == text


def test_readable_with_a_unit() -> None:
    assert readable(3_474_260, "B") == "3.474 MB"
    assert readable(12, "B") == "12 B"
