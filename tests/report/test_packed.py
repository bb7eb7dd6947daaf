"""The report on a packed network: which path each layer takes, and why."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import SlowWarning
from binarize.kernels import native


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.body = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Conv2d(64, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.stem(x)).relu()).relu())


def packed(policy: str) -> binarize.PackedNetwork:
    x = torch.zeros(1, 3, 16, 16)
    return binarize.pack(binarize.convert(Net(), policy, example_inputs=x).eval())


def test_paths_and_reasons() -> None:
    report = binarize.report(packed("bidense"))
    assert [(row.name, row.path) for row in report.layers] == [
        ("stem", "float"),
        ("body", "popcount"),
        ("head", "float"),
    ]
    stem, body, _ = report.layers
    assert stem.reason.startswith("reads the image")
    assert "one factor per sample" in body.reason
    assert body.kind == "PackedUnit"
    assert report.unfused is None
    # 36,864 bits and a few numbers per channel; the whole with two float layers and a norm.
    assert 4608 <= body.bytes < 4 * 4608
    assert body.bytes < report.bytes < 40_000
    assert json.loads(json.dumps(report.to_dict()))["layers"][1]["path"] == "popcount"


@pytest.mark.parametrize("name", ["reference", *native.status().usable])
def test_kernels_by_instruction_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.ENVIRONMENT, name)
    net = nn.Sequential(
        *(nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 64, 3, groups=64, padding=2, dilation=2)),
        *(nn.ConvTranspose2d(64, 48, 4, stride=2), nn.Conv2d(48, 8, (1, 5), stride=(1, 2))),
    )
    everything = {str(i): "binarize" for i in range(4)}
    x = torch.zeros(1, 64, 16, 16)
    student = binarize.convert(net, example_inputs=x, overrides=everything)
    report = binarize.report(binarize.pack(student.eval()))
    assert [row.path for row in report.layers] == ["popcount"] * 4
    kernels = [row.kernel for row in report.layers]
    # Tables need a register of shuffles, and lanes that outputs fill.
    tables = name in ("avx2", "avx512bw")
    wanted = ["table look-ups" if tables and wide else "popcount" for wide in (1, 0, 1, 0)]
    assert kernels == (
        ["plain torch"] * 4 if name == "reference" else [f"{name}: {how}" for how in wanted]
    )
    assert all(kernel in str(report) for kernel in kernels)


@pytest.mark.parametrize(("policy", "count"), [("groupnet", 5), ("adabin", 2), ("lqnet", 9)])
def test_sums_of_several_counts(policy: str, count: int) -> None:
    report = binarize.report(packed(policy))
    assert [(row.name, row.path) for row in report.layers] == [
        ("stem", "float"),
        ("body", "popcount"),
        ("head", "float"),
    ]
    body = report.layers[1]
    why = f"{count} sums over signs, each with its own factor per sample and output channel"
    assert body.reason == why
    assert body.kernel


def test_weights_that_are_unpacked() -> None:
    report = binarize.report(packed("bidense-released"))
    body = report.layers[1]
    assert body.path == "float accumulation"
    assert body.reason == (
        "the scale of its activations, one per channel, is inside the channel sum"
    )
    text = str(report)
    assert text.splitlines()[0].startswith("Net, packed: 2 float, 1 float accumulation; ")
    assert all(row.reason in text for row in report.layers)


def test_why_modules_run_one_by_one() -> None:
    class Reads(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if float(y.sum()) > 0 else -y

    x = torch.zeros(1, 3, 16, 16)
    with pytest.warns(SlowWarning, match="runs module by module, .*: it reads values"):
        network = binarize.pack(binarize.convert(Reads(), example_inputs=x).eval(), x)
    report = binarize.report(network)
    assert "reads values" in str(report.unfused)
    assert str(report).splitlines()[-1].startswith("modules run one by one: it reads values")
