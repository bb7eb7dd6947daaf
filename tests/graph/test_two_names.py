"""A layer of several names has one in plans and reports, and answers to all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize

X = torch.zeros(1, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.all = nn.Sequential(self.conv, nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.ModuleDict({"inner": nn.Conv2d(8, 8, 3, padding=1)})
        self.list = nn.ModuleList([self.block])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.block["inner"](self.all(x))))


def test_report_of_a_packed_network() -> None:
    student = binarize.convert(Net(), example_inputs=X).eval()
    decided = {d.site: d.reason for d in student.binarize_plan.layers if d.action == "keep"}
    rows = {row.name: row.reason for row in binarize.report(binarize.pack(student)).layers}
    assert len(rows) == 3
    assert decided.items() <= rows.items()
    assert {row.name for row in binarize.report(student).layers} >= set(decided)


@pytest.mark.parametrize("name", ["block.inner", "list.0.inner", "list.-1.inner"])
def test_rules_take_every_name(name: str) -> None:
    assert _plan({name: "keep", "conv": "binarize"}).layers[1].action == "keep"


@pytest.mark.parametrize("name", ["conv", "all.0", "all.-3"])
def test_overrides_take_every_name(name: str) -> None:
    assert _plan({name: "binarize"}).layers[0].action == "binarize"


@pytest.mark.parametrize("name", ["conv", "all.0"])
def test_functions_are_asked_about_every_name(name: str) -> None:
    chosen = [{"match": lambda path, _module: path == name, "action": "binarize"}]
    assert _plan(chosen).layers[0].action == "binarize"


def _plan(overrides: Any) -> binarize.Plan:
    return binarize.plan(Net(), example_inputs=X, overrides=overrides)
