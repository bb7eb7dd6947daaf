"""``tools/tables.py``: the paper's rows, counted, and the differences that can be checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tables import Check, _document, build_parser

from binarize.cli import main

# Twelve conversions of a large network, without storage: 20 seconds of a free core.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Params of the paper's Tables 1 and 4, in thousands, in its order.
PUBLISHED = {
    "ConvNeXt, pretrained": 40020,
    "ConvNeXt": 40023,
    "BNN": 1470,
    "ReActNet": 1531,
    "AdaBin": 1484,
    "BiSRNet": 1639,
    "BiDense": 1626,
    "1) w/o DAB": 1484,
    "2) w/o CFB": 1626,
    "3) w/o thresholds": 1531,
    "4) threshold b": 1579,
    "5) threshold k·mean": 1579,
    "6) w/o scales": 1579,
    "7) scale MAD(x)": 1579,
    "8) scale learned": 1626,
}
# The released network's binarized input channels, and the values of its activations.
INPUTS, ACTIVATIONS, WEIGHTS = 47_072, 56_256, 39_759_840


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("table") / "tables.md"


@pytest.fixture(scope="module")
def told(written: Path) -> Any:
    """The answer for a program, of one run that also writes the document."""
    import contextlib
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["--json", "--quiet", "--output", str(written)], build_parser()) == 0
    return json.loads(out.getvalue())


def test_every_row_stands_beside_the_published_one(told: Any) -> None:
    rows = {row["method"]: row for row in told["rows"]}
    assert {method: row["published_params"] for method, row in rows.items()} == PUBLISHED
    for row in rows.values():
        assert row["params_difference"] == pytest.approx(row["params"] - row["published_params"])
        assert row["ops_difference"] == pytest.approx(row["ops"] - row["published_ops"])
        assert row["params"] == pytest.approx(
            (row["float_params"] + row["binary_params"] / 32) / 1e3
        )
        assert row["ops"] == pytest.approx((row["float_ops"] + row["binary_ops"] / 64) / 1e9)


def test_the_counts_are_those_of_the_released_network(told: Any) -> None:
    rows = {row["name"]: row for row in told["rows"]}
    assert rows["float"]["params"] == pytest.approx(39_912.5, abs=0.05)
    assert rows["float"]["ops"] == pytest.approx(69.334, abs=5e-4)
    # The authors' network has one shift more, of 96 channels.
    assert rows["bidense"]["params"] == pytest.approx(1_551.158 - 0.096)
    assert rows["bidense"]["ops"] == pytest.approx(5.532, abs=5e-4)
    parts = {
        "bnn": (0, 0),
        "reactnet": (INPUTS, ACTIVATIONS),
        "bidense": (3 * INPUTS, ACTIVATIONS),
        "no-dab": (0, ACTIVATIONS),
        "no-cfb": (3 * INPUTS, ACTIVATIONS),
        "no-threshold": (INPUTS, ACTIVATIONS),
        "bias-threshold": (2 * INPUTS, ACTIVATIONS),
        "mean-threshold": (2 * INPUTS, ACTIVATIONS),
        "no-scale": (2 * INPUTS, ACTIVATIONS),
        "mad-scale": (2 * INPUTS, ACTIVATIONS),
        "learned-scale": (3 * INPUTS, ACTIVATIONS),
    }
    for name, (binarizers, activations) in parts.items():
        assert rows[name]["binarizer_params"] == binarizers, name
        assert rows[name]["activation_params"] == activations, name
    for name, row in rows.items():
        assert row["binary_params"] == (0 if name.startswith("float") else WEIGHTS), name
    # Scalars of every layer, and a slope of the surrogate.
    assert rows["adabin"]["binarizer_params"] == 2 * 69
    assert rows["bisrnet"]["binarizer_params"] == 2 * INPUTS + 69


def test_differences_agree_or_are_explained(told: Any) -> None:
    found = {(check["more"], check["less"]): check for check in told["differences"]}
    wanted = {
        ("bidense", "bias-threshold"): 47,
        ("bidense", "mean-threshold"): 47,
        ("bidense", "no-scale"): 47,
        ("bidense", "no-dab"): 142,
        ("reactnet", "bnn"): 61,
        ("bisrnet", "reactnet"): 108,
    }
    for pair, published in wanted.items():
        assert found[pair]["published"] == published
    for pair, check in found.items():
        assert check["agrees"] == (abs(check["counted"] - check["published"]) <= 3), pair
        assert check["agrees"] != bool(check["reason"]), pair
    explained = {pair for pair, check in found.items() if check["reason"]}
    assert explained == {("reactnet", "bnn"), ("bisrnet", "reactnet"), ("adabin", "bnn")}
    # With the biases of the published BNN both others are within the tolerance too.
    assert "the difference is 61.7 K" in found["reactnet", "bnn"]["reason"]
    assert "the difference is 14.8 K" in found["adabin", "bnn"]["reason"]


def test_the_document_says_the_same(told: Any, written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert text.startswith("# The paper's tables, recounted\n")
    for row in told["rows"]:
        assert f"| {row['method']} |" in text
        assert f"{row['params']:,.1f}" in text
    for check in told["differences"]:
        assert f"| {check['more']} | {check['less']} |" in text
        assert check["reason"] in text
    kept = Path(__file__).resolve().parents[2] / "docs" / "tables.md"
    assert kept.read_text(encoding="utf-8") == text, (
        "run: python tools/tables.py --output docs/tables.md"
    )


def test_without_reasons_the_document_has_none() -> None:
    agreed = Check("k", "bidense", "bias-threshold", 47, 47.1)
    assert agreed.agrees
    assert "\n- " not in _document([], [agreed])
    assert not Check("k", "bidense", "bias-threshold", 47, 50.1).agrees


def test_a_missing_folder_is_told_before_anything_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--output", str(tmp_path / "missing" / "tables.md")], build_parser()) == 1
    assert "its folder does not exist" in capsys.readouterr().err
