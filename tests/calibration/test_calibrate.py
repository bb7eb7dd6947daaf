"""Calibration: exact where it can be, better on a small network, harmless when it fails."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.calibration.equations import as_columns
from binarize.errors import BinarizeError, DataError, ModelError
from binarize.nn.base import BinaryLayer
from binarize.policy.loader import from_dict

PLAIN = from_dict(
    {
        "name": "plain",
        "summary": "signs only",
        "source": "this test",
        "unit": {
            "binarizer": "sign",
            "weight": "scaled-sign",
            "bypass": "none",
            "activation": "none",
        },
        "rules": [
            {"match": {"role": "input"}, "action": "keep", "reason": "input"},
            {"match": {"role": "prediction"}, "action": "keep", "reason": "output"},
            {"action": "binarize", "reason": "rest"},
        ],
    }
)


class Signs(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x < 0, -1.0, 1.0).to(x.dtype)


def binary_teacher(layer: Any, channels: int = 6) -> nn.Sequential:
    """A network whose middle layer is binary in all but its class."""
    torch.manual_seed(3)
    middle = layer(channels)
    with torch.no_grad():
        middle.weight.copy_(torch.where(middle.weight < 0, -0.2, 0.2))
    norm = nn.BatchNorm2d(channels)
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    head = nn.Conv2d(channels, 3, 1)
    network = nn.Sequential(nn.Conv2d(3, channels, 3), Signs(), middle, norm, nn.ReLU(), head)
    return network.double().eval()


def images(*sizes: int, side: int = 12, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, side, side, generator=generator, dtype=torch.float64) for n in sizes]


LAYERS = {
    "plain": lambda c: nn.Conv2d(c, c, 3, padding=1, bias=False),
    "bias": lambda c: nn.Conv2d(c, c, 3, stride=2),
    "groups": lambda c: nn.Conv2d(c, c, 3, groups=2, bias=False),
    "depthwise": lambda c: nn.Conv2d(c, c, 3, groups=c, bias=False),
    "transposed": lambda c: nn.ConvTranspose2d(c, c, 3, stride=2, padding=1, groups=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_is_binary_already_is_found_again(name: str) -> None:
    teacher = binary_teacher(LAYERS[name])
    student = binarize.convert(teacher, PLAIN, example_inputs=images(1)[0])
    unit: Any = student[2]
    with torch.no_grad():
        flipped = torch.rand_like(unit.weight) < 0.1
        unit.weight[flipped] *= -1
        nn.init.normal_(unit.norm.weight)
        nn.init.normal_(unit.norm.bias)
    batches = images(2, 3)
    assert binarize.calibrate(student, teacher, batches) is student
    for x in images(2, seed=9):
        assert torch.allclose(student(x), teacher(x), atol=1e-6)
    # A negative gain of the teacher's norm goes to the weight.
    ours, theirs = as_columns(unit, unit.weight), as_columns(unit, teacher[2].weight)
    gains = teacher[3].weight.view(len(theirs), 1, -1)
    assert torch.equal(ours.sign(), (theirs * gains).sign())
    assert (unit.norm.weight > 0).all()
    assert torch.allclose(unit.weight.abs().mean(), teacher[2].weight.abs().mean())


def test_without_weights_only_norms_and_slopes_change() -> None:
    teacher = binary_teacher(LAYERS["plain"])
    student = binarize.convert(teacher, PLAIN, example_inputs=images(1)[0])
    nn.init.normal_(student[2].weight)
    before = student[2].weight.clone()
    binarize.calibrate(student, teacher, images(2, 3), weights=False)
    assert torch.equal(student[2].weight, before)
    sums: list[Tensor] = []
    student[2].norm.register_forward_pre_hook(lambda module, args: sums.append(args[0]))
    for x in images(2, 3):
        student(x)
    pooled = torch.cat([s.transpose(0, 1).flatten(1) for s in sums], 1)
    assert torch.allclose(student[2].norm.running_mean, pooled.mean(1))
    assert torch.allclose(student[2].norm.running_var, pooled.var(1))


# Real networks


def trained() -> tuple[nn.Module, list[Tensor]]:
    """A small U-Net after a few steps on the procedural scenes."""
    from binarize.cli.networks import Recipe, build
    from binarize.data import open_dataset

    torch.manual_seed(0)
    network = build(Recipe("demo:UNet", 6, arguments={"widths": [8, 16]}))
    data = open_dataset("scenes", None, split="train", size=(32, 32), task="segmentation")
    samples = [data[i] for i in range(24)]
    x = torch.stack([sample["image"] for sample in samples])
    y = torch.stack([sample["mask"] for sample in samples])
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for step in range(40):
        part = slice(8 * (step % 3), 8 * (step % 3) + 8)
        loss = nn.functional.cross_entropy(network(x[part]), y[part], ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval(), list(x.split(8))


@pytest.fixture(scope="module")
def unet() -> tuple[nn.Module, list[Tensor]]:
    return trained()


@torch.no_grad()
def agreement(student: nn.Module, teacher: nn.Module, batches: list[Tensor]) -> float:
    student.eval()
    same = [student(x).argmax(1) == teacher(x).argmax(1) for x in batches]
    return float(torch.cat(same).double().mean())


@pytest.mark.parametrize(
    ("policy", "least"),
    [
        *(("bidense", 0.2), ("deploy", 0.08), ("xnor", 0.25), ("irnet", 0.1)),
        # Behind slopes that are fitted, too, these constant thresholds see one sign: at most 0.03.
        *(("adabin", 0.08), ("bisrnet", 0.1), ("reactnet", 0.08), ("bidense-no-threshold", 0.08)),
    ],
)
def test_agreement_rises(unet: Any, policy: str, least: float) -> None:
    teacher, batches = unet
    converted = binarize.convert(teacher, policy, example_inputs=batches[0][:1])
    before = agreement(binarize.recalibrate(copy.deepcopy(converted), batches), teacher, batches)
    student = binarize.calibrate(converted, teacher, batches)
    assert agreement(student, teacher, batches) > before + least


@pytest.mark.parametrize(
    ("policy", "moves"),
    [
        *(("bidense", True), ("bidense-released", True), ("bidense-mean-threshold", True)),
        *(("bidense-no-threshold", False), ("bidense-bias-threshold", False)),
        *(("adabin", False), ("reactnet", False), ("bisrnet", False)),
    ],
)
def test_slopes_are_fitted_where_thresholds_follow_the_mean(
    unet: Any, policy: str, moves: bool
) -> None:
    teacher, batches = unet

    def slopes(activations: bool | None) -> list[Tensor]:
        student = binarize.convert(teacher, policy, example_inputs=batches[0][:1])
        units = [m for m in student.modules() if isinstance(m, BinaryLayer)]
        assert {unit.binarizer.follows_mean for unit in units} == {moves}
        if activations is not False:
            binarize.calibrate(student, teacher, batches[:1], activations=activations)
        return [p for name, p in student.named_parameters() if "slope" in name or "tive" in name]

    start, default, fitted = slopes(False), slopes(None), slopes(True)
    assert start
    same = [torch.equal(one, other) for one, other in zip(start, default, strict=True)]
    assert all(same) is not moves
    assert not all(torch.equal(one, other) for one, other in zip(start, fitted, strict=True))


@pytest.mark.parametrize("policy", ["groupnet", "cbnn", "lqnet"])
def test_several_latent_weights_stay(unet: Any, policy: str) -> None:
    teacher, batches = unet
    student = binarize.convert(teacher, policy, example_inputs=batches[0][:1])
    units = [m for m in student.modules() if isinstance(m, BinaryLayer)]
    before = [(unit.weight.clone(), unit.norm.bias.clone()) for unit in units]
    binarize.calibrate(student, teacher, batches)
    for unit, (weight, bias) in zip(units, before, strict=True):
        assert torch.equal(unit.weight, weight)
        assert not torch.equal(unit.norm.bias, bias)


def test_layers_that_share_a_weight_keep_it() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)
    second.weight = first.weight
    teacher = nn.Sequential(
        *(nn.Conv2d(3, 6, 1), first, nn.BatchNorm2d(6), nn.ReLU()),
        *(second, nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)),
    )
    teacher = teacher.double().eval()
    student = binarize.convert(teacher, "bidense", example_inputs=images(1)[0])
    assert student[1].weight is student[4].weight
    binarize.calibrate(student, teacher, images(2, 2))
    assert student[1].weight is student[4].weight
    assert torch.equal(student[1].weight, teacher[1].weight)


def test_8_bit_layers_observe_what_reaches_them() -> None:
    teacher = binary_teacher(LAYERS["plain"])
    student = binarize.convert(
        teacher, PLAIN, example_inputs=images(1)[0], overrides={"2": "int8", "5": "int8"}
    )
    binarize.calibrate(student, teacher, images(2, 3))
    assert student[2].input_range.limits.tolist() == [-1.0, 1.0]
    assert student[2].input_range.num_batches_tracked == 2
    assert student[2].input_range.momentum == 0.1
    for x in images(2, seed=9):
        expected = teacher(x)
        assert (student(x) - expected).abs().mean() < 0.03 * expected.std()
    seen: list[Tensor] = []
    student[5].input_range.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for x in images(2, 3):
        student(x)
    highest = torch.stack([x.max() for x in seen]).mean()
    assert torch.allclose(student[5].input_range.limits[1].double(), highest)


# How it is called


def converted() -> tuple[Any, Any]:
    teacher = binary_teacher(LAYERS["plain"])
    return teacher, binarize.convert(teacher, PLAIN, example_inputs=images(1)[0])


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(network: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_modes_flags_and_the_teacher_stay() -> None:
    teacher, student = converted()
    student.train()
    student[2].eval()
    student[2].weight.requires_grad_(False)
    teacher.train()
    teacher[3].eval()
    modes = [m.training for network in (student, teacher) for m in network.modules()]
    flags = [p.requires_grad for p in student.parameters()]
    identities = [id(x) for x in (*student.parameters(), *student.buffers())]
    before = state(teacher)
    binarize.calibrate(student, teacher, images(2, 3))
    assert [m.training for network in (student, teacher) for m in network.modules()] == modes
    assert [p.requires_grad for p in student.parameters()] == flags
    assert [id(x) for x in (*student.parameters(), *student.buffers())] == identities
    assert all(p.grad is None for p in student.parameters())
    assert same(teacher, before)
    assert not any(m._forward_pre_hooks for n in (student, teacher) for m in n.modules())
    assert torch.is_grad_enabled()
    # The same as in evaluation mode.
    _, other = converted()
    other.eval()
    binarize.calibrate(other, teacher.eval(), images(2, 3))
    assert same(other, state(student))


def test_batches_of_all_kinds() -> None:
    teacher, student = converted()
    given = images(2, 3)
    expected = state(binarize.calibrate(copy.deepcopy(student), teacher, given))
    for batches in (
        ({"image": x, "mask": None} for x in given),
        [(x, torch.zeros(len(x))) for x in given],
        [*given, given[0][:0]],
    ):
        assert same(binarize.calibrate(copy.deepcopy(student), teacher, batches), expected)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 8), nn.Linear(3, 8)
        self.middle, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(torch.relu(self.left(left) + self.right(right)))))


def test_several_inputs() -> None:
    torch.manual_seed(0)
    teacher = Pair().double().eval()
    x, y = torch.randn(9, 5, 4).double(), torch.randn(9, 5, 3).double()
    policy = {"middle": "binarize"}
    student = binarize.convert(teacher, example_inputs=(x, y), overrides=policy)
    start = state(student)
    expected = state(binarize.calibrate(copy.deepcopy(student), teacher, [(x, y), (x, y)]))
    assert not torch.equal(expected["middle.weight"], start["middle.weight"])
    for batch in ({"left": x, "right": y}, (x, y, "a label")):
        assert same(binarize.calibrate(copy.deepcopy(student), teacher, [batch] * 2), expected)
    with pytest.raises(DataError) as caught:
        binarize.calibrate(student, teacher, [(x,)])
    assert str(caught.value) == (
        "batch='tuple': must start with the network's inputs, tensors of 9×5×4 and 9×5×3; "
        "give them as a tuple, or as a dict of named inputs"
    )
    with pytest.raises(DataError, match="must be a floating-point tensor of 3 dimensions; give"):
        binarize.calibrate(student, teacher, [(x, y.long())])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches='list': has no images; give at least one batch with an image"),
        ([torch.zeros(0, 3, 4, 4)], "batches='list': has no images; give at least one batch"),
        (torch.zeros(1, 3, 4, 4), "batches='Tensor': must be a list or loader of batches; give"),
        ([torch.zeros(3, 4, 4)], r"image=\(3, 4, 4\): must have shape \(N, C, H, W\); add the"),
        ([{"mask": 3}], "batch='dict': has no images; give a tensor, a tuple that starts"),
        ([torch.zeros(1, 4, 9, 9)], "example_inputs=.*the network's forward does not accept them"),
    ],
)
def test_batches_that_cannot_be(batches: Any, message: str) -> None:
    teacher, student = converted()
    before = state(student)
    with pytest.raises(BinarizeError, match=message):
        binarize.calibrate(student, teacher, batches)
    assert same(student, before)


def test_a_failure_on_the_way_changes_nothing() -> None:
    teacher, student = converted()
    before = state(student)
    student.train()
    with pytest.raises(RuntimeError, match="expected input"):
        binarize.calibrate(student, teacher, [images(2)[0], torch.zeros(1, 4, 9, 9).double()])

    def stop(name: str, done: int, total: int) -> None:
        assert not same(student, before)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        binarize.calibrate(student, teacher, images(2), on_step=stop)
    assert same(student, before)
    assert student.training
    assert student[2].training
    assert not any(m._forward_pre_hooks for n in (student, teacher) for m in n.modules())
    assert not any("_main" in thread.name for thread in threading.enumerate())


def test_what_was_not_converted() -> None:
    teacher, student = converted()
    with pytest.raises(ModelError) as caught:
        binarize.calibrate(teacher, teacher, images(1))
    assert str(caught.value) == (
        "student='Sequential': is not a converted network; give the result of binarize.convert"
    )
    student[2] = nn.Conv2d(6, 6, 3)
    with pytest.raises(ModelError, match="student='2': its plan says that this layer is binary"):
        binarize.calibrate(student, teacher, images(1))


def test_the_start_of_a_training() -> None:
    teacher = binary_teacher(LAYERS["plain"])
    given = images(2, 3)
    student = binarize.prepare_student(teacher, PLAIN, given, unfold=False, calibrate=True)
    by_hand = binarize.convert(teacher, PLAIN, example_inputs=given[0][:1])
    binarize.calibrate(by_hand, teacher, given)
    assert same(student, state(by_hand))
    with pytest.raises(DataError) as caught:
        binarize.prepare_student(teacher, PLAIN, calibrate=True)
    assert str(caught.value) == (
        "calibrate=True: there are no images to fit layers on; give batches"
    )
