"""Where the float network has the value that a part of the student has to match."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

import binarize
from binarize.errors import ModelError


class Residual(nn.Module):
    """The addition before the activation, as in ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.first(self.bn1(self.conv1(x))))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(self.second(y))


class After(nn.Module):
    """The addition after the activation, as in DarkNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.drop = nn.ReLU(), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.relu(self.bn(self.conv(x))))


class Fused(nn.Module):
    """A norm that applies the activation itself, as in EfficientNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.bn = BatchNormAct2d(8, act_layer=nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Again(nn.Module):
    """A layer and an activation that are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu, self.pool = nn.ReLU(), nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn(self.conv(x)))
        return self.relu(self.bn(self.conv(self.pool(y))))


def network(block: Any) -> Any:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3), block(), nn.Conv2d(8, 2, 1))
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(value)
    return made.double().eval()


BATCHES = [
    torch.randn(n, 3, 11, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    for n in (2, 3)
]


def means(module: nn.Module, run: nn.Module) -> Tensor:
    """The mean per channel of what a module returns, over all calls."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(
        lambda module, args, output: seen.append(output.detach().transpose(0, 1).flatten(1))
    )
    with torch.no_grad():
        for x in BATCHES:
            run(x)
    handle.remove()
    return torch.cat(seen, 1).mean(1)


def calibrated(teacher: nn.Module, **options: Any) -> Any:
    student = binarize.convert(teacher, "bidense", example_inputs=BATCHES[0])
    return binarize.calibrate(student.eval(), teacher, BATCHES, **options)


@pytest.mark.parametrize("weights", [True, False])
def test_a_block_with_its_shortcut(weights: bool) -> None:
    """The unit's bypass replaces the shortcut, so that its output is what the addition gave."""
    teacher = network(Residual)
    student = calibrated(teacher, weights=weights)
    assert [d.action for d in student.binarize_plan.additions] == ["drop"]
    block = student[1]
    assert torch.allclose(means(block.conv1, student), means(teacher[1].first, teacher))
    assert torch.allclose(means(block.conv2, student), means(teacher[1].second, teacher))
    # The activations add something, so that their mean fits too.
    assert torch.allclose(means(block, student), means(teacher[1], teacher))


def test_an_addition_behind_the_activation() -> None:
    teacher = network(After)
    student = calibrated(teacher)
    assert [d.action for d in student.binarize_plan.additions] == ["drop"]
    expected = means(teacher[1].bn, teacher) + means(teacher[0], teacher)
    assert torch.allclose(means(student[1].conv, student), expected)
    assert torch.allclose(means(student[1], student), means(teacher[1], teacher))


def test_a_norm_with_its_activation() -> None:
    teacher = network(Fused)
    student = calibrated(teacher)
    norm = nn.BatchNorm2d(8).double().eval()
    norm.load_state_dict(teacher[1].bn.state_dict())
    plain = nn.Sequential(teacher[0], teacher[1].conv, norm)
    assert torch.allclose(means(student[1].conv, student), means(norm, plain))
    assert torch.allclose(means(student[1], student), means(teacher[1], teacher))


def test_all_calls_count() -> None:
    """A module is fitted at its first call, and again at the second, to both."""
    teacher = network(Again)
    student = calibrated(teacher)
    unit = student[1].conv
    # The first call was fitted to itself, and then to both: the second's input is a little older.
    found, expected = means(unit, student), means(teacher[1].bn, teacher)
    assert torch.allclose(found, expected, atol=0.3)
    alone = calibrated(teacher, weights=False, activations=False)
    steps: list[str] = []
    again = calibrated(teacher, on_step=lambda name, done, total: steps.append(name))
    assert steps == ["1.conv", "1.prelu_0", "1.conv", "1.prelu_1"]
    assert torch.equal(again[1].conv.weight, unit.weight)
    assert not torch.equal(alone[1].conv.weight, unit.weight)


def test_a_teacher_of_another_kind() -> None:
    teacher = network(Residual)
    student = binarize.convert(teacher, "bidense", example_inputs=BATCHES[0])
    remedy = "give the float network that the student was converted from"
    with pytest.raises(ModelError) as caught:
        binarize.calibrate(student, network(After), BATCHES)
    assert str(caught.value) == f"teacher='1.conv1': there is no such layer; {remedy}"
    other = network(Residual)
    other[1].conv2 = nn.Conv2d(8, 8, 1).double()
    with pytest.raises(ModelError) as caught:
        binarize.calibrate(student, other, BATCHES)
    assert str(caught.value) == (
        f"teacher='1.conv2': its weight has shape (8, 8, 1, 1), in the student (8, 8, 3, 3); "
        f"{remedy}"
    )
    with pytest.raises(ModelError) as caught:
        binarize.calibrate(student, student, BATCHES)
    assert str(caught.value) == (
        f"teacher='BinarizedSequential': has binary or 8-bit layers itself; {remedy}"
    ).replace("BinarizedSequential", type(student).__name__)
