#!/usr/bin/env python3
"""Params and OPs of the BiDense paper's Tables 1 and 4, as counted and as published.

python tools/tables.py                           # all rows, and the differences between them
python tools/tables.py --json                    # the same as JSON
python tools/tables.py --output docs/tables.md   # the same as a document
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from binarize.cli import main
from binarize.cli.output import Output
from binarize.cli.parser import Parser, add_common
from binarize.errors import FileError
from binarize.graph import convert
from binarize.nn import BinaryLayer
from binarize.nn.parts import ACTIVATIONS
from binarize.policy import Policy, load_policy
from binarize.report import report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from paper_network import DenseNetwork

_DESCRIPTION = """\
Build the BiDense paper's network (ConvNeXt-Tiny + UPerNet), binarize it by every method of the
paper's Tables 1 and 4, and print Params and OPs beside the published numbers. Nothing is run or
downloaded, only counted. Only the differences between rows can be checked."""

_NOTE = (
    "Our own counts of the paper's network by each of its methods, beside the published numbers. "
    "Params = float + binary / 32, OPs = float + binary / 64, where an OP is a multiply-accumulate "
    "of a convolution or linear layer. We count the released network; its float version has "
    "107.5 K fewer parameters and a quarter of the operations that the paper prints, so absolute "
    "numbers cannot agree: the released BiDense itself has 1,551 K. For parameters this cancels "
    "out in the differences between rows. Published OPs also differ between rows with the "
    "same convolutions; the paper does not say why. As released, all rows binarize the same "
    "layers, BiDense rows have scales per channel, and PReLUs have two values per channel."
)


def build_parser() -> Parser:
    """Return the command's parser."""
    parser = Parser(prog="python tools/tables.py", description=_DESCRIPTION)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write a Markdown document"
    )
    add_common(parser, run)
    return parser


def run(args: argparse.Namespace, out: Output) -> int | None:
    """Count, compare, print; exit code 1 if a difference is neither met nor explained."""
    if args.output is not None and not args.output.parent.is_dir():
        raise FileError("output", str(args.output), "its folder does not exist", "create it first")
    with out.step("counting"):
        rows = count_rows()
    checks = check_rows(rows)
    cells = [[*row[:2], *row[3:]] for row in _row_cells(rows.values())]
    out.console.print(_view([*_ROW_TITLES[:2], *_ROW_TITLES[3:]], cells))
    out.print(f"\n{_NOTE}\n")
    out.console.print(_view(_CHECK_TITLES, _check_cells(checks)))
    for check in checks:
        if check.reason:
            out.print(f"\n{check.what} ({check.more} - {check.less}): {check.reason}")
    if args.output is not None:
        _write(args.output, _document(rows.values(), checks))
        out.print(f"\nwritten: {args.output}", wrap=False)
    out.emit(
        {
            "rows": [row.to_dict() for row in rows.values()],
            "differences": [check.to_dict() for check in checks],
        }
    )
    return 1 if any(not check.agrees and not check.reason for check in checks) else None


_ROW_TITLES = (
    *("table", "row", "policy", "Params K", "published", "diff"),
    *("OPs G", "published", "diff"),
)
_CHECK_TITLES = ("what", "row", "minus row", "counted K", "published", "within 3 K")


def _row_cells(rows: Iterable[Counted]) -> list[tuple[str, ...]]:
    return [
        (
            " ".join(map(str, counted.row.tables)),
            counted.row.method,
            counted.row.policy or "",
            f"{counted.params:,.1f}",
            f"{counted.row.params:,}",
            f"{counted.params - counted.row.params:+,.1f}",
            f"{counted.ops:.2f}",
            f"{counted.row.ops:.2f}",
            f"{counted.ops - counted.row.ops:+.2f}",
        )
        for counted in rows
    ]


def _check_cells(checks: Iterable[Check]) -> list[tuple[str, ...]]:
    return [
        (
            check.what,
            check.more,
            check.less,
            f"{check.counted:.1f}",
            str(check.published),
            "yes" if check.agrees else "no, see below",
        )
        for check in checks
    ]


def _view(titles: Sequence[str], cells: Iterable[Sequence[str]]) -> Any:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in titles:
        number = title in ("Params K", "published", "diff", "OPs G", "counted K")
        table.add_column(title, justify="right" if number else "left", no_wrap=title != "what")
    for row in cells:
        table.add_row(*row)
    return table


def _document(rows: Iterable[Counted], checks: Sequence[Check]) -> str:
    parts = [
        "# The paper's tables, recounted",
        "Written by `python tools/tables.py --output docs/tables.md`.",
        "## Params and OPs (Tables 1 and 4)",
        _NOTE,
        _markdown(_ROW_TITLES, _row_cells(rows)),
        "## Differences between rows",
        _markdown(_CHECK_TITLES, _check_cells(checks)),
        *(f"- {check.what} ({check.more} − {check.less}): {check.reason}." for check in checks),
    ]
    return "\n\n".join(part for part in parts if not part.endswith(": .")) + "\n"


def _markdown(titles: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise FileError(
            "output", str(path), f"cannot be written ({error.strerror})", "choose another path"
        ) from error


# Params and OPs as the paper prints them: ConvNeXt-Tiny + UPerNet at 480×480, ADE20K


@dataclass(frozen=True)
class Published:
    """One row of the paper's tables.

    Attributes:
        name: Our name of the row; a network that is in both tables has one row.
        method: The paper's name of it.
        tables: The tables that contain it.
        policy: The bundled policy, or ``None`` for the float network.
        params: Params, in thousands.
        ops: OPs, in billions.
    """

    name: str
    method: str
    tables: tuple[int, ...]
    policy: str | None
    params: int
    ops: float


ROWS = (
    Published("float", "ConvNeXt, pretrained", (1,), None, 40020, 288.36),
    Published("float-scratch", "ConvNeXt", (1, 4), None, 40023, 288.37),
    Published("bnn", "BNN", (1,), "bnn", 1470, 4.84),
    Published("reactnet", "ReActNet", (1, 4), "reactnet", 1531, 4.98),
    Published("adabin", "AdaBin", (1,), "adabin", 1484, 5.24),
    Published("bisrnet", "BiSRNet", (1,), "bisrnet", 1639, 5.07),
    Published("bidense", "BiDense", (1, 4), "bidense", 1626, 5.37),
    Published("no-dab", "1) w/o DAB", (4,), "bidense-no-dab", 1484, 5.11),
    Published("no-cfb", "2) w/o CFB", (4,), "bidense-no-cfb", 1626, 5.28),
    Published("no-threshold", "3) w/o thresholds", (4,), "bidense-no-threshold", 1531, 5.24),
    Published("bias-threshold", "4) threshold b", (4,), "bidense-bias-threshold", 1579, 5.31),
    Published("mean-threshold", "5) threshold k·mean", (4,), "bidense-mean-threshold", 1579, 5.37),
    Published("no-scale", "6) w/o scales", (4,), "bidense-no-scale", 1579, 5.24),
    Published("mad-scale", "7) scale MAD(x)", (4,), "bidense-mad-scale", 1579, 5.37),
    Published("learned-scale", "8) scale learned", (4,), "bidense-learned-scale", 1626, 5.31),
)


# What we count


CLASSES, SIDE = 151, 480
# Thousands of parameters by which a difference between two rows may deviate from the published one:
# both published numbers are rounded to thousands.
TOLERANCE = 3.0

_ACTIVATIONS = tuple(cls for cls in ACTIVATIONS.values())


@dataclass(frozen=True)
class Counted:
    """One row, counted.

    Attributes:
        row: The published row.
        params: Params, in thousands: float + binary / 32.
        ops: OPs, in billions: float + binary / 64.
        float_params: Parameters in floating point.
        binary_params: 1-bit parameters.
        float_ops: Floating-point multiply-accumulates.
        binary_ops: 1-bit multiply-accumulates.
        binarizer_params: Float parameters of the activation binarizers.
        activation_params: Float parameters of the activations.
        biases: Biases of the original layers, which the norms of the binary layers replace.
    """

    row: Published
    params: float
    ops: float
    float_params: int
    binary_params: int
    float_ops: int
    binary_ops: int
    binarizer_params: int
    activation_params: int
    biases: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        own = {key: value for key, value in vars(self).items() if key != "row"}
        return {
            **{key: value for key, value in vars(self.row).items() if key not in ("params", "ops")},
            **own,
            "published_params": self.row.params,
            "published_ops": self.row.ops,
            "params_difference": self.params - self.row.params,
            "ops_difference": self.ops - self.row.ops,
        }


@dataclass(frozen=True)
class Check:
    """A difference between two rows, in thousands of parameters.

    Attributes:
        what: What the two differ in.
        more: Name of the row with more parameters.
        less: Name of the row with fewer.
        published: Their difference in the paper.
        counted: Their difference as counted.
        reason: Why the two deviate by more than the tolerance, if they do.
    """

    what: str
    more: str
    less: str
    published: int
    counted: float
    reason: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the two differences agree within the tolerance."""
        return abs(self.counted - self.published) <= TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "agrees": self.agrees}


def count_rows() -> dict[str, Counted]:
    """Count every row on the meta device: nothing is computed, and weights take no memory.

    Returns:
        Rows by name, in the order of the paper.
    """
    known: dict[str | None, Counted] = {}
    counted = {}
    for row in ROWS:
        if row.policy not in known:
            known[row.policy] = count(row)
        counted[row.name] = replace(known[row.policy], row=row)
    return counted


def count(row: Published) -> Counted:
    """Count one row."""
    with torch.device("meta"):
        original: nn.Module = DenseNetwork(CLASSES).eval()
        image = torch.zeros(1, 3, SIDE, SIDE)
    network = original
    if row.policy is not None:
        network = convert(original, as_printed(row.policy), example_inputs=image)
    made = report(network, image)
    assert made.ops is not None
    assert made.float_ops is not None
    assert made.binary_ops is not None
    binary = {k: m for k, m in network.named_modules() if isinstance(m, BinaryLayer)}
    replaced: list[Any] = [original.get_submodule(path) for path in binary]
    activations = [module for module in network.modules() if isinstance(module, _ACTIVATIONS)]
    return Counted(
        row,
        made.params / 1e3,
        made.ops / 1e9,
        made.float_params,
        made.binary_params,
        made.float_ops,
        made.binary_ops,
        sum(p.numel() for layer in binary.values() for p in layer.binarizer.parameters()),
        sum(p.numel() for activation in activations for p in activation.parameters()),
        sum(layer.bias.numel() for layer in replaced if layer.bias is not None),
    )


def as_printed(name: str) -> Policy:
    """Return a policy in the form that matches the paper's counts.

    It binarizes the released choice of layers. Scales are per channel, because for each of k, b and
    a the published rows differ by as many parameters as the network has binarized input channels.
    Activations have two values per channel, as released: the published ReActNet has as many
    parameters as BiDense without thresholds.
    """
    released, policy = load_policy("bidense-released"), load_policy(name)
    unit = policy.unit
    if unit.binarizer in ("dab", "ablated-dab"):
        unit = replace(unit, binarizer_options={**unit.binarizer_options, "scale": "channel"})
    if unit.activation == "shifted-prelu":
        unit = replace(unit, activation_options=released.unit.activation_options)
    return replace(
        policy,
        unit=unit,
        rules=released.rules,
        replace_activations=released.replace_activations,
    )


def check_rows(rows: Mapping[str, Counted]) -> tuple[Check, ...]:
    """Compare the differences between rows, which do not depend on what all rows share.

    Args:
        rows: From :func:`count_rows`.
    """
    checks = []
    for what, more, less in _DIFFERENCES:
        a, b = rows[more], rows[less]
        check = Check(what, more, less, a.row.params - b.row.params, a.params - b.params)
        if not check.agrees:
            check = replace(check, reason=_reason(a, b))
        checks.append(check)
    return tuple(checks)


_DIFFERENCES = (
    ("k of the threshold", "bidense", "bias-threshold"),
    ("b of the threshold", "bidense", "mean-threshold"),
    ("a of the scale", "bidense", "no-scale"),
    ("k and b", "bidense", "no-threshold"),
    ("k, b and a: the whole binarizer", "bidense", "no-dab"),
    ("the bypass", "bidense", "no-cfb"),
    ("a, against the deviation itself", "bidense", "mad-scale"),
    ("a, against a learned scale", "bidense", "learned-scale"),
    ("learned shifts and activations", "reactnet", "bnn"),
    ("learned slopes, activations in every unit", "bisrnet", "reactnet"),
    ("learned sets, activations", "adabin", "bnn"),
)


def _reason(a: Counted, b: Counted) -> str:
    """Break the counted difference down, and state what would explain the published one."""
    binarizers = (a.binarizer_params - b.binarizer_params) / 1e3
    activations = (a.activation_params - b.activation_params) / 1e3
    parts = f"binarizers {binarizers:+.1f} K, activations {activations:+.1f} K"
    if not b.activation_params:
        biases = b.biases / 1e3
        return (
            f"{parts}; here norms replace the convolutions' {biases:.1f} K biases; if "
            f"the published {b.row.method} still has them, the difference is "
            f"{a.params - b.params - biases:.1f} K"
        )
    left = a.row.params - b.row.params - binarizers
    return (
        f"{parts}; here every unit has an inner activation with three values per channel and none "
        f"after it; the published numbers leave {left:.1f} K more for activations than the other "
        "row has, and the paper does not say where they are"
    )


if __name__ == "__main__":
    sys.exit(main(parser=build_parser()))
