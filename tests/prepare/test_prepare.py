"""The start of a training: converted, unfolded, with norms that fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import binarize
from binarize.cli.app import build_parser
from binarize.cli.networks import Recipe, build
from binarize.cli.output import Output
from binarize.cli.start import make_student
from binarize.errors import BinarizeError

BATCHES = [
    {"image": torch.randn(4, 3, 24, 32, generator=torch.Generator().manual_seed(i))}
    for i in range(3)
]


def teacher(folded: bool = False) -> nn.Module:
    torch.manual_seed(0)
    network = build(Recipe("demo:UNet", 6, arguments={"widths": [8, 16]}))
    for module in network.modules():
        if folded and isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    return network


def state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("folded", [False, True])
def test_it_is_the_three_steps(folded: bool) -> None:
    network = teacher(folded)
    before, flags = state(network), [m.training for m in network.modules()]
    student = binarize.prepare_student(network, "bidense", BATCHES)
    assert same(state(network), before)
    assert [m.training for m in network.modules()] == flags

    by_hand = teacher(folded)
    if folded:
        assert binarize.train.unfold_norms(by_hand, BATCHES) > 0
    expected = binarize.convert(by_hand, "bidense", example_inputs=BATCHES[0]["image"][:1])
    binarize.recalibrate(expected, BATCHES)
    assert same(state(student), state(expected))
    assert student.binarize_plan.binary_share > 0.5


@pytest.mark.parametrize("options", [{"unfold": False}, {"norm_batches": 0}, {"norm_batches": 1}])
def test_what_is_left_out(options: dict[str, Any]) -> None:
    student = binarize.prepare_student(teacher(True), batches=BATCHES, **options)
    expected = binarize.convert(teacher(True), example_inputs=BATCHES[0]["image"][:1])
    if options == {"norm_batches": 1}:
        one = teacher(True)
        binarize.train.unfold_norms(one, BATCHES[:1])
        expected = binarize.convert(one, example_inputs=BATCHES[0]["image"][:1])
        binarize.recalibrate(expected, BATCHES[:1])
    elif "unfold" in options:
        binarize.recalibrate(expected, BATCHES)
    assert same(state(student), state(expected))


def test_without_batches_or_norms() -> None:
    student = binarize.prepare_student(teacher())
    assert same(state(student), state(binarize.convert(teacher())))
    torch.manual_seed(0)
    plain = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Conv2d(3, 3, 3), nn.ReLU())))
    made = binarize.prepare_student(plain, batches=BATCHES)
    assert made(BATCHES[0]["image"]).shape == (4, 3, 18, 26)


def test_only_as_many_batches_as_asked_for_are_read() -> None:
    read: list[int] = []

    def endless() -> Any:
        while True:
            read.append(1)
            yield BATCHES[0]

    binarize.prepare_student(teacher(), batches=endless(), norm_batches=2)
    assert len(read) == 2


def test_the_command_line_prepares_alike(tmp_path: Any) -> None:
    line = ["train", "--model", "demo:UNet", "--model-arg", "widths=[8,16]", "--data", "scenes",
            "--output", str(tmp_path), "--recalibrate", "3", "--budget", "24kB"]  # fmt: skip
    torch.manual_seed(0)
    args = build_parser().parse_args(line)
    ours, _, _ = make_student(args, 6, BATCHES, Output(quiet=True))
    theirs = binarize.prepare_student(teacher(), batches=BATCHES, budget="24kB")
    plain = binarize.prepare_student(teacher(), batches=BATCHES)
    assert same(state(ours), state(theirs))
    assert theirs.binarize_plan.binary_share < plain.binarize_plan.binary_share


def test_a_budget_that_cannot_be() -> None:
    with pytest.raises(BinarizeError, match="budget="):
        binarize.prepare_student(teacher(), batches=BATCHES, budget="1 byte")
