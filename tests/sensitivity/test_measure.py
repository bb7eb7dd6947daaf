"""Sensitivities: what is known of them by calculation, and what they may not touch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import BinarizeError
from binarize.nn.spec import UnitSpec
from binarize.policy import Policy, load_policy
from binarize.sensitivity.compare import compare, error_of_mean
from binarize.train import Depth, Segmentation

CLASSES = 3
# Signs, one scale per output channel, nothing around them.
PLAIN = Policy(
    "plain",
    unit=UnitSpec(binarizer="sign", weight="scaled-sign", bypass=None, activation=None),
    rules=load_policy("bidense").rules,
)


class Signs(nn.Module):
    """+1 or -1, as a 1-bit network would have it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0)


class Net(nn.Module):
    """One layer that loses nothing, one that does, one that never runs."""

    def __init__(self, out: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.signs = Signs()
        self.free = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.free_norm = nn.BatchNorm2d(8)
        self.costly = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.idle = nn.Conv2d(8, 8, 3)
        self.head = nn.Conv2d(8, out, 1)
        with torch.no_grad():
            self.free.weight.copy_(self.free.weight.sign() * torch.rand(8, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.free_norm(self.free(self.signs(self.stem(x))))
        return self.head(self.norm(self.costly(x)))


def batches(count: int = 3, out: int = CLASSES) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(2, 3, 16, 16), torch.randint(0, out, (2, 16, 16))) for _ in range(count)]


def by_site(result: binarize.Sensitivity) -> dict[str, Any]:
    return {row.site: row for row in result.sites}


@pytest.mark.parametrize("mode", ["alone", "without"])
def test_what_binarization_does_not_change_costs_nothing(mode: str) -> None:
    result = binarize.sensitivity(
        Net().eval(), batches(), task=Segmentation(CLASSES), policy=PLAIN, mode=mode
    )
    rows = by_site(result)
    assert list(rows) == ["free", "costly", "idle"]
    for name in ("free", "idle"):
        assert abs(rows[name].distance) < 1e-6
        assert rows[name].disagreement == pytest.approx(0, abs=1e-3)
        assert rows[name].drop == pytest.approx(0, abs=1e-3)
    assert rows["costly"].distance > 1e-3
    assert rows["costly"].disagreement > 0.01
    assert rows["free"].shape == (8, 4, 3, 3)
    assert result.ranked()[0].site == "costly"
    assert (result.planned, result.images, result.calibration) == (3, 6, 6)
    assert result.metric == "mIoU"


def test_the_cost_of_a_layer_by_hand() -> None:
    # One channel, one position: the only layer w·x becomes |w|·sign(x), and the norm makes of both
    # maps values of mean 0 and variance 1. The head hands them through.
    net = nn.Sequential(
        nn.Conv2d(1, 1, 1),
        nn.Identity(),
        nn.Conv2d(1, 1, 1, bias=False),
        nn.BatchNorm2d(1, eps=1e-12),
    )
    net.append(nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        for number in (0, 4):
            net[number].weight.fill_(1)
            net[number].bias.zero_()
        net[2].weight.fill_(0.7)
    x = torch.tensor([-3.0, -1.0, 1.0, 3.0]).view(1, 1, 2, 2)
    result = binarize.sensitivity(net.eval(), [x], policy=PLAIN)
    # Normalised with the unbiased variance that running statistics hold: variances 20/3 and 4/3.
    was = x / math.sqrt(20 / 3)
    now = x.sign() / math.sqrt(4 / 3)
    (row,) = result.sites
    assert row.distance == pytest.approx(float((was - now).abs().mean()), rel=1e-5)
    assert row.disagreement == pytest.approx(
        float(((was - now).abs() > math.log(1.25)).float().mean())
    )
    assert row.distance_error is None  # of a single batch
    assert row.metric is row.drop is row.drop_error is None


def test_with_a_single_layer_both_modes_ask_the_same() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    net.append(nn.Conv2d(8, CLASSES, 1))
    data = [image for image, _ in batches()]
    alone, without = (
        binarize.sensitivity(net.eval(), data, mode=mode).sites for mode in ("alone", "without")
    )
    assert alone == without
    assert alone[0].distance > 0


def test_a_trained_network_is_measured_with_its_own_weights() -> None:
    teacher, data = Net().eval(), batches()
    options: dict[str, Any] = {"task": Segmentation(CLASSES), "mode": "without"}
    student = binarize.convert(teacher, PLAIN, example_inputs=data[0][0]).eval()
    untrained = binarize.sensitivity(teacher, data, policy=PLAIN, **options)
    # Fresh from the conversion it has the weights that the teacher's conversion has.
    same = binarize.sensitivity(student, data, teacher=teacher, **options)
    assert same.trained
    assert not untrained.trained
    assert same.sites == untrained.sites
    # A student whose own weights differ: with "free" put back, all else is still the student's.
    with torch.no_grad():
        student.costly.weight.neg_()
        student.head.weight.mul_(2)
    other = binarize.sensitivity(student, data, teacher=teacher, **options)
    assert other.binary_metric != same.binary_metric
    assert abs(by_site(other)["free"].distance) < 1e-6
    assert by_site(other)["costly"].distance != by_site(same)["costly"].distance


def test_a_shared_layer_is_one_layer() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.body = nn.Conv2d(8, 8, 3, padding=1)
            self.again = self.body
            self.head = nn.Conv2d(8, CLASSES, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(self.body(self.stem(x)).relu()).relu())

    net, data = Shared().eval(), [image for image, _ in batches()]
    student = binarize.convert(net, example_inputs=data[0]).eval()
    for result in (
        binarize.sensitivity(net, data),
        binarize.sensitivity(student, data, mode="without", teacher=net),
    ):
        assert [row.site for row in result.sites] == ["body"]
        assert result.sites[0].distance > 0


def test_more_bits_are_what_the_other_units_alone_cost() -> None:
    """The rows of a policy of those units, without the statistics of a chance."""
    data = batches()
    options: dict[str, Any] = {"task": Segmentation(CLASSES)}
    net = Net().eval()
    made = binarize.sensitivity(net, data, policy=PLAIN, more_bits=["groupnet", "lqnet"], **options)
    assert made.more == ("groupnet", "lqnet")
    assert [replace(row, more={}) for row in made.sites] == list(
        binarize.sensitivity(net, data, policy=PLAIN, **options).sites
    )
    units = {
        "groupnet": replace(PLAIN.unit, weight="binary-bases", weight_options={"bases": 5}),
        "lqnet": replace(
            PLAIN.unit,
            binarizer="learned-levels",
            binarizer_options={"bits": 3},
            weight="learned-levels",
            weight_options={"bits": 3},
        ),
    }
    for name, unit in units.items():
        other = binarize.sensitivity(net, data, policy=replace(PLAIN, unit=unit), **options)
        for row, alone in zip(made.sites, other.sites, strict=True):
            found = row.more[name]
            assert found == {key: getattr(alone, key) for key in found}
    assert by_site(made)["costly"].more["lqnet"]["distance"] > 0
    assert set(by_site(made)["costly"].more["lqnet"]) == {"distance", "disagreement", "drop"}


def test_what_rises_is_a_loss_where_less_is_better() -> None:
    net = Net(out=1).eval()
    data = [(image, torch.rand(2, 1, 16, 16) * 9 + 0.5) for image, _ in batches()]
    result = binarize.sensitivity(net, data, task=Depth(10.0), policy=PLAIN)
    assert result.metric == "AbsRel"
    for row in result.sites:
        assert row.drop == pytest.approx(row.metric - result.float_metric)


def test_nothing_of_the_network_changes() -> None:
    net, data = Net(), batches()
    net.free_norm.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    flags = [module.training for module in net.modules()]
    binarize.sensitivity(net, data, task=Segmentation(CLASSES))
    assert [module.training for module in net.modules()] == flags
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_classifiers_and_layers_that_are_kept() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)])
    seen = []
    result = binarize.sensitivity(
        net.eval(),
        [torch.randn(4, 3, 12, 12)],
        overrides={"1": "keep"},
        on_site=lambda row, done, total: seen.append((row.site, done, total)),
    )
    assert seen == [("2", 1, 1)]
    assert [row.site for row in result.sites] == ["2"]


def test_distance_and_disagreement_in_closed_form() -> None:
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])
    one, other = (x.log().view(1, 2, 1, 1) + 5 for x in (p, q))
    expected = 0.7 * math.log(0.7 / 0.4) + 0.3 * math.log(0.3 / 0.6)
    assert compare(one, other) == (pytest.approx(expected, rel=1e-5), 1.0)
    assert compare(one, one) == (0.0, 0.0)
    depth = torch.tensor([0.0, 0.0]).view(1, 1, 1, 2)
    moved = torch.tensor([0.2, 0.3]).view(1, 1, 1, 2)  # log 1.25 is 0.223
    assert compare(depth, moved) == (pytest.approx(0.25), 0.5)
    assert error_of_mean([1.0, 3.0]) == pytest.approx(1.0)


def student_of(net: nn.Module) -> nn.Module:
    return binarize.convert(net, example_inputs=torch.zeros(1, 3, 16, 16)).eval()


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (
            Net,
            {"mode": "without", "more_bits": "groupnet"},
            "more_bits='groupnet': their gain for a layer is measured with all other layers in "
            "float; use mode='alone'",
        ),
        (Net, {"mode": "solo"}, "mode='solo': no such mode; use alone or without"),
        (Net, {"data": []}, "data=0: has no batches; give at least one batch of images"),
        (
            lambda: student_of(Net()),
            {},
            "it is binary, but mode 'alone' measures layers in the float network; "
            "give the float network, or mode='without'",
        ),
        (
            lambda: student_of(Net()),
            {"mode": "without"},
            "teacher=None: a 1-bit network needs the float network that it was converted from; "
            "give it as the teacher",
        ),
        (
            lambda: student_of(Net()),
            {"mode": "without", "teacher": Net(), "policy": "bnn"},
            "policy='bnn': the network was already converted by 'bidense'; omit it",
        ),
        (
            lambda: student_of(Net()),
            {"mode": "without", "teacher": nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))},
            "this layer differs from the network that was converted",
        ),
        (
            lambda: binarize.pack(student_of(Net())),
            {"mode": "without", "teacher": Net()},
            "a packed network cannot be modified; give the network before packing",
        ),
        (Net, {"teacher": Net()}, "teacher='Net': it is for a trained 1-bit network"),
        (
            Net,
            {"overrides": {"*": "keep"}},
            "there is nothing to binarize, and so nothing to measure",
        ),
        (Net, {"task": Segmentation(2)}, "must be from 0 to 1, or 255"),
    ],
)
def test_mistakes(make: Any, options: dict[str, Any], text: str) -> None:
    given = {"data": batches(1), **options}
    with pytest.raises(BinarizeError) as caught:
        binarize.sensitivity(make().eval(), **given)
    assert text in str(caught.value)
