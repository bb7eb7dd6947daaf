"""Networks as users write them: functional calls, optional arguments, dictionaries, branches."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.nn import BinaryLayer, ShiftedPReLU

X = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(5))


class Encoder(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(x))
        return torch.relu(x + y)


class EncoderDecoder(nn.Module):
    """Functional ReLUs, additions, and a resize to the skip's size."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.stages = nn.ModuleList([Encoder(8, 16, 2), Encoder(16, 24, 2), Encoder(24, 32, 2)])
        self.laterals = nn.ModuleDict(
            {name: nn.Conv2d(c, 16, 1) for name, c in (("a", 16), ("b", 24), ("c", 32))}
        )
        self.merge = nn.Conv2d(32, 16, 3, padding=1, bias=False)
        self.merge_norm = nn.BatchNorm2d(16)
        self.head = nn.Conv2d(16, 4, 1)
        self.dropout = dropout

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        size = x.shape[-2:]
        skips = []
        h = F.relu(self.stem(x))
        for stage in self.stages:
            h = stage(h)
            skips.append(h)
        maps = [layer(s) for layer, s in zip(self.laterals.values(), skips, strict=True)]
        top = maps[-1]
        for skip in reversed(maps[:-1]):
            top = F.interpolate(top, size=skip.shape[-2:], mode="nearest") + skip
        top = torch.cat([top, maps[0]], dim=1)
        top = F.relu(self.merge_norm(self.merge(top)))
        top = F.dropout(top, p=self.dropout, training=self.training)
        logits = self.head(top) * scale
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return {"logits": logits, "features": top}


def convert(model: nn.Module, x: Any = X, **how: Any) -> nn.Module:
    return binarize.convert(model, example_inputs=x, **how)


def test_encoder_decoder(lab: SimpleNamespace) -> None:
    teacher = EncoderDecoder()
    before = lab.snapshot(teacher)
    student = convert(teacher)
    assert lab.same(before, lab.snapshot(teacher))
    decided = {d.site: d.action for d in student.binarize_plan.layers}
    assert {site for site, action in decided.items() if action == "keep"} == {"stem", "head"}
    assert set(decided) == set(lab.layers(teacher))
    # Functional activations after units are replaced, with one module each.
    activations = student.binarize_plan.activations
    assert sum(d.action == "replace" for d in activations) == 7
    assert sum(isinstance(m, ShiftedPReLU) for m in student.modules()) == 7
    # The additions inside the stages are shortcuts, the two of the decoder are merges.
    additions = student.binarize_plan.additions
    assert sum(d.action == "drop" for d in additions) == 3
    assert all(d.scope.startswith("stages") for d in additions if d.action == "drop")
    out = student(X)
    (out["logits"] * torch.randn_like(out["logits"])).sum().backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (17, 100), (8, 8), (15, 9)])
@pytest.mark.parametrize("training", [True, False])
def test_every_size_that_the_original_takes(
    size: tuple[int, int], training: bool, lab: SimpleNamespace
) -> None:
    teacher = EncoderDecoder().train(training)
    student = convert(teacher).train(training)
    for samples in (1, 3):
        x = torch.randn(samples, 3, *size)
        if training and samples == 1 and min(size) <= 8:
            continue
        assert lab.shapes(student(x)) == lab.shapes(teacher(x))


def test_the_signature_stays(lab: SimpleNamespace) -> None:
    student = convert(EncoderDecoder()).eval()
    plain, scaled = student(X), student(X, scale=2.0)
    torch.testing.assert_close(scaled["logits"], 2 * plain["logits"])
    torch.testing.assert_close(student(x=X)["logits"], plain["logits"])
    ours = inspect.signature(student.forward).parameters.values()
    theirs = inspect.signature(EncoderDecoder().forward).parameters.values()
    assert [(p.name, p.kind, p.default) for p in ours] == [
        (p.name, p.kind, p.default) for p in theirs
    ]
    assert isinstance(student, EncoderDecoder)


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_functional_dropout_follows_the_mode(probability: float) -> None:
    student = convert(EncoderDecoder(dropout=probability))
    student.eval()
    assert torch.equal(student(X)["features"], student(X)["features"])
    assert (student(X)["features"] == 0).float().mean() < 0.1
    student.train()
    zeros = (student(X)["features"] == 0).float().mean().item()
    assert zeros == pytest.approx(probability, abs=0.1)
    # Converted in evaluation mode, it still drops when it is trained.
    other = convert(EncoderDecoder(dropout=0.5).eval())
    assert not other.training
    zeros = (other.train()(X)["features"] == 0).float().mean().item()
    assert zeros == pytest.approx(0.5, abs=0.1)


class DropoutBlock(nn.Module):
    """Dropout between a dropped addition and a functional ReLU that is replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.conv(x), 0.5, self.training)
        return F.relu(x + y)


def test_dropout_in_a_rewritten_block() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), DropoutBlock(), nn.Conv2d(8, 2, 1))
    student = convert(model)
    assert isinstance(student[1].conv, BinaryLayer)
    student.train()
    assert not torch.equal(student(X), student(X))
    student.eval()
    assert torch.equal(student(X), student(X))
    student[1].train()
    assert not torch.equal(student(X), student(X))


def test_copies_of_a_rewritten_network() -> None:
    student = convert(EncoderDecoder(dropout=0.3)).eval()
    expected = student(X)["logits"]
    buffer = io.BytesIO()
    torch.save(student, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(student),
        pickle.loads(pickle.dumps(student)),
        torch.load(buffer, weights_only=False),
        copy.deepcopy(copy.deepcopy(student)),
    ):
        assert torch.equal(twin(X)["logits"], expected)
        with torch.no_grad():
            for layer in twin.modules():
                if isinstance(layer, BinaryLayer):
                    layer.weight.neg_()
        assert not torch.equal(twin(X)["logits"], expected)
        assert torch.equal(student(X)["logits"], expected)
        twin.train()
        assert not student.training


class Pair(NamedTuple):
    fine: Tensor
    coarse: Tensor


class ManyWays(nn.Module):
    """Optional arguments, a named tuple, a branch on the mode and one on an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.extra = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)
        self.aux = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Any:
        h = F.relu(self.body(self.stem(x)))
        if skip is not None:
            h = h + self.extra(skip)
        if h.shape[-1] % 2:
            h = h[..., :-1]
        if self.training:
            return Pair(self.head(h), self.aux(F.avg_pool2d(h, 2)))
        return self.head(h)


def test_branches_on_arguments_modes_and_sizes_survive(lab: SimpleNamespace) -> None:
    teacher = ManyWays()
    skip = torch.randn(2, 8, 32, 48)
    for example in (X, (X, skip), {"x": X, "skip": skip}):
        student = convert(teacher, example)
        assert isinstance(student.body, BinaryLayer)
        for training in (True, False):
            student.train(training)
            teacher.train(training)
            assert type(student(X)) is type(teacher(X))
            assert lab.shapes(student(X)) == lab.shapes(teacher(X))
            assert lab.shapes(student(X, skip)) == lab.shapes(teacher(X, skip))
            assert lab.shapes(student(X[..., 1:])) == lab.shapes(teacher(X[..., 1:]))
        student.eval()
        assert not torch.equal(student(X), student(X, skip))


class Recurrent(nn.Module):
    """A loop whose length is an attribute, over one shared block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.block = Encoder(8, 8, 1)
        self.steps = 3

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for _ in range(self.steps):
            h = self.block(h)
        return self.head(h)


def test_a_block_called_in_a_loop_stays_one_block() -> None:
    student = convert(Recurrent())
    assert sum(isinstance(m, BinaryLayer) for m in student.modules()) == 2
    assert student(X).shape == (2, 2, 32, 48)
    assert [d.action for d in student.binarize_plan.additions] == ["drop"]


class OddNames(nn.Module):
    """Attribute names that code which generates code may trip over."""

    def __init__(self) -> None:
        super().__init__()
        self.input = nn.Conv2d(3, 8, 3, padding=1)
        self.forward_conv = nn.Conv2d(8, 8, 3, padding=1)
        self.add = nn.BatchNorm2d(8)
        self.relu = nn.Conv2d(8, 8, 1)
        self.weight = nn.Parameter(torch.ones(1, 8, 1, 1))
        self.output = nn.Conv2d(8, 2, 1)
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        x = self.input(input - self.mean)
        x = F.relu(self.add(self.forward_conv(x)) + x)
        return self.output(F.relu(self.relu(x * self.weight)))


def test_names_do_not_collide() -> None:
    student = convert(OddNames())
    decided = {d.site: d.action for d in student.binarize_plan.layers}
    assert decided == {
        "input": "keep",
        "forward_conv": "binarize",
        "relu": "binarize",
        "output": "keep",
    }
    student(X).sum().backward()
    assert student.weight.grad is not None
    assert torch.equal(student.mean, torch.zeros(1, 3, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_precision_of_the_network_is_kept(dtype: torch.dtype) -> None:
    teacher = EncoderDecoder().to(dtype).eval()
    student = convert(teacher, X.to(dtype))
    assert {p.dtype for p in student.parameters()} == {dtype}
    assert student(X.to(dtype))["logits"].dtype == dtype


def test_every_module_keeps_its_mode() -> None:
    teacher = EncoderDecoder().eval()
    student = convert(teacher)
    assert not any(module.training for module in student.modules())
    # One stage in training, as in a partial fine-tuning, and its first norm frozen.
    teacher.stages[1].train()
    teacher.stages[1].norm1.eval()
    student = convert(teacher)
    assert student.stages[1].conv2.training
    assert student.stages[1].conv2.norm.training
    assert not student.stages[1].conv1.norm.training
    assert not student.stages[0].conv1.training
    assert not student.training


def test_frozen_layers_stay_frozen() -> None:
    teacher = EncoderDecoder()
    for parameter in teacher.stages[0].parameters():
        parameter.requires_grad_(False)
    student = convert(teacher)
    assert not student.stages[0].conv1.weight.requires_grad
    assert student.stages[1].conv1.weight.requires_grad


def test_overrides_keep_a_layer_and_its_norm() -> None:
    teacher = EncoderDecoder().eval()
    student = convert(teacher, overrides={"stages.1.*": "keep", "merge": "keep"})
    assert type(student.merge) is nn.Conv2d
    assert torch.equal(student.merge_norm.weight, teacher.merge_norm.weight)
    assert type(student.merge_norm) is nn.BatchNorm2d
    # A stage of float layers keeps its addition and its activations.
    h = torch.randn(1, 16, 9, 9)
    torch.testing.assert_close(student.stages[1](h), teacher.stages[1](h))


def test_a_block_with_one_float_layer_keeps_its_shortcut() -> None:
    """The path through the branch is broken where a layer stays in float."""
    teacher = EncoderDecoder().eval()
    student = convert(teacher, overrides={"stages.1.conv2": "keep"})
    additions = student.binarize_plan.additions
    assert not [d for d in additions if d.scope == "stages.1" and d.action == "drop"]
    stage = student.stages[1]
    assert isinstance(stage.conv1, BinaryLayer)
    with torch.no_grad():
        stage.conv2.weight.zero_()
        stage.conv2.bias.zero_()
    h = torch.randn(1, 16, 9, 9)
    inner = stage.conv1(h)
    # The float layer gives nothing, yet the block still passes its input on.
    both = torch.stack([stage(h).flatten(), inner.relu().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.9


class Detector(nn.Module):
    """Several predictions in a tuple, by heads shared between levels."""

    def __init__(self, last: str = "none") -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.tower = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(16, 5, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
        self.last = last

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        h = self.tower(F.relu(self.first(x)))
        coarse = self.boxes(F.max_pool2d(h, 2))
        if self.last == "sigmoid":
            coarse = 10 * torch.sigmoid(coarse)
        elif self.last == "exp":
            coarse = coarse.exp()
        elif self.last == "resize":
            coarse = F.interpolate(coarse, scale_factor=2.0, mode="bilinear")
        elif self.last == "relu":
            coarse = F.relu(coarse)
        return self.classes(h).flatten(2), [self.boxes(h), coarse]


@pytest.mark.parametrize("last", ["none", "sigmoid", "exp", "resize", "relu"])
def test_every_prediction_is_kept(last: str) -> None:
    student = convert(Detector(last))
    decided = {d.site: d.action for d in student.binarize_plan.layers}
    assert decided == {
        "first": "keep",
        "tower.0": "binarize",
        "classes": "keep",
        "boxes": "keep",
    }


def test_hooks_and_attributes_of_the_user_survive() -> None:
    teacher = EncoderDecoder()
    teacher.palette = ["road", "sky"]
    teacher.stages[0].note = {"a": 1}
    calls = []
    teacher.stages[0].register_forward_hook(lambda *_: calls.append(1))
    student = convert(teacher)
    assert student.palette == ["road", "sky"]
    assert student.stages[0].note == {"a": 1}
    student.palette.append("tree")
    assert teacher.palette == ["road", "sky"]
    calls.clear()
    student(X)
    assert len(calls) == 1


def test_the_global_random_state_does_not_matter() -> None:
    teacher = EncoderDecoder()
    one = convert(teacher)
    torch.manual_seed(1234)
    torch.rand(7)
    other = convert(teacher)
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
