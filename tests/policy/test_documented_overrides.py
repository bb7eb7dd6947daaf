"""What rules/README.md says about overrides works as it is written there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import binarize

TEXT = (Path(__file__).resolve().parents[2] / "rules" / "README.md").read_text(encoding="utf-8")
LINES = dict(re.findall(r"^\| ((?:keep|binarize) [^|]*) \| `(\{.*\})` \|$", TEXT, re.M))
KEPT = {"encoder.stem", "head"}
TOKENS = {"encoder.mlp.0", "encoder.mlp.1"}
# By wish: what is kept, of the network below.
EXPECTED = {
    "keep one layer": KEPT | TOKENS | {"encoder.layer4.0.conv1"},
    "keep the last decoder block": KEPT | TOKENS | {"decoder.blocks.1.0", "decoder.blocks.1.1"},
    "keep the first and the last two layers": KEPT
    | TOKENS
    | {"encoder.layer4.0.conv1", "decoder.blocks.1.1"},
    "keep depthwise convolutions": KEPT | TOKENS | {"encoder.layer4.0.conv2"},
    "keep layers of a class": KEPT | TOKENS | {"decoder.blocks.0"},
    "binarize linear layers over tokens": KEPT,
    "binarize all linear layers but the classifier": KEPT,
    "keep layers that hold few weights": KEPT
    | TOKENS
    | {"encoder.layer4.0.conv2", "decoder.blocks.0", "decoder.blocks.1.1"},
}


class Tokens(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(x.shape)


class Network(nn.Module):
    """Has a layer for every line of the table."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential()
        block.conv1 = nn.Conv2d(16, 16, 3, padding=1)
        block.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.encoder = nn.Sequential()
        self.encoder.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.encoder.layer4 = nn.Sequential(block)
        self.encoder.mlp = Tokens(nn.Linear(16, 64), nn.Linear(64, 16))
        self.decoder = nn.Module()
        self.decoder.blocks = nn.ModuleList(
            [
                nn.ConvTranspose2d(16, 4, 2, 2),
                nn.Sequential(nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(32, 8, 1)),
            ]
        )
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encoder(x)
        for block in self.decoder.blocks:
            x = block(x)
        return self.head(x)


def test_every_line_is_tried() -> None:
    assert set(LINES) == set(EXPECTED)


@pytest.mark.parametrize("wish", EXPECTED)
def test_a_line_of_the_table(wish: str) -> None:
    overrides = eval(LINES[wish])
    plan = binarize.plan(Network(), example_inputs=torch.zeros(1, 3, 16, 16), overrides=overrides)
    assert {d.site for d in plan.layers if d.action == "keep"} == EXPECTED[wish]


def test_the_script_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
    script = tmp_path / "overrides.py"
    script.write_text(block, encoding="utf-8")
    runpy.run_path(str(script))
    out = capsys.readouterr().out
    assert "conv_head: binarize -> keep" in out
