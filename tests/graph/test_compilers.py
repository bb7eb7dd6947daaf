"""Converted networks compile and export where their originals do, and keep their own methods."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import binarize

# Dynamo instantiates autograd functions by itself, which torch warns about.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

# Dynamo needs seconds per network: one of each kind of block.
COMPILED = [
    "timm/test_resnet",
    "timm/test_convnext",
    "timm/test_efficientnet",
    "smp/Unet/resnet18",
]
EXPORTED = ["timm/test_resnet", "smp/Unet/resnet18", "smp/FPN/resnet18"]


def compiled(model: nn.Module) -> nn.Module:
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="eager")


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_as_one_graph(name: str, lab: SimpleNamespace) -> None:
    teacher, x = lab.build(name).eval(), lab.example(name, samples=1)
    with torch.no_grad():
        try:
            compiled(copy.deepcopy(teacher))(x)
        except torch._dynamo.exc.Unsupported:
            pytest.skip("the original does not compile as one graph")
        student = binarize.convert(teacher, example_inputs=x)
        expected = lab.flat(student(x))
        got = lab.flat(compiled(student)(x))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_compiled_network_is_converted_as_itself() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    x = torch.zeros(1, 3, 9, 9)
    wrapped = torch.compile(network, backend="eager")
    assert binarize.plan(wrapped, example_inputs=x) == binarize.plan(network, example_inputs=x)
    student = binarize.convert(wrapped, example_inputs=x)
    assert type(student) is nn.Sequential
    assert list(student.state_dict()) == list(
        binarize.convert(network, example_inputs=x).state_dict()
    )


def test_compiled_modules_inside_are_converted_as_themselves() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 8, 3))),
        nn.Conv2d(8, 2, 1),
    ).eval()
    x = torch.randn(1, 3, 12, 12)
    expected = binarize.convert(network, example_inputs=x)
    wrapped = copy.deepcopy(network)
    wrapped[1][2] = torch.compile(wrapped[1][2], backend="eager")
    wrapped[1] = torch.compile(wrapped[1], backend="eager")
    names = list(wrapped.state_dict())
    assert any(name.count("_orig_mod") == 2 for name in names)
    student = binarize.convert(wrapped, example_inputs=x)
    assert list(student.state_dict()) == list(expected.state_dict())
    assert torch.equal(student(x), expected(x))
    # The original stays as it is, and shares nothing with the student.
    assert list(wrapped.state_dict()) == names
    assert torch.equal(wrapped[0].weight, student[0].weight)
    assert wrapped[0].weight is not student[0].weight
    student[1] = torch.compile(student[1], backend="eager")
    torch.testing.assert_close(binarize.pack(student)(x), expected(x), rtol=1e-4, atol=1e-4)


def test_trains_compiled(lab: SimpleNamespace) -> None:
    student = binarize.convert(
        lab.build("timm/test_resnet"), example_inputs=torch.zeros(1, 3, 64, 64)
    )
    twin = copy.deepcopy(student)
    x = torch.randn(2, 3, 64, 64)
    student.train()(x).square().sum().backward()
    compiled(twin.train())(x).square().sum().backward()
    for (key, ours), theirs in zip(student.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-3, msg=key)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", EXPORTED)
def test_exports(name: str, dynamic: bool, lab: SimpleNamespace) -> None:
    teacher, x = lab.build(name).eval(), lab.example(name)
    shapes = None
    if dynamic:
        side = [32 * torch.export.Dim(n, min=2, max=16) for n in ("height", "width")]
        shapes = ({0: torch.export.Dim("batch", min=1, max=16), 2: side[0], 3: side[1]},)
    torch.export.export(teacher, (x,), dynamic_shapes=shapes)
    student = binarize.convert(teacher, example_inputs=x)
    program = torch.export.export(student, (x,), dynamic_shapes=shapes).module()
    inputs = [x, torch.randn(1, 3, 96, 160)] if dynamic else [x]
    with torch.no_grad():
        for given in inputs:
            for one, other in zip(lab.flat(program(given)), lab.flat(student(given)), strict=True):
                torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_predict_of_smp(lab: SimpleNamespace) -> None:
    name = "smp/Unet/resnet18"
    x = lab.example(name)
    student = binarize.convert(lab.build(name), example_inputs=x).train()
    y = student.predict(x)
    assert y.shape == (2, 5, 64, 64)
    assert not student.training
    assert torch.equal(y, student(x))
    assert student.encoder.out_channels == lab.build(name).encoder.out_channels
    assert [tuple(f.shape) for f in student.encoder(x)] == [
        tuple(f.shape) for f in lab.build(name).encoder(x)
    ]


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/convnext_tiny", "timm/densenet121"])
def test_methods_of_timm(name: str, lab: SimpleNamespace) -> None:
    teacher, x = lab.build(name).eval(), lab.example(name)
    student = binarize.convert(teacher, example_inputs=x).eval()
    with torch.no_grad():
        features = student.forward_features(x)
        assert features.shape == teacher.forward_features(x).shape
        assert torch.equal(student.forward_head(features), student(x))
        assert student.forward_head(features, pre_logits=True).shape == (2, teacher.num_features)
    assert student.num_features == teacher.num_features
    assert student.get_classifier().weight.shape == teacher.get_classifier().weight.shape
    student.reset_classifier(7)
    assert student(x).shape == (2, 7)


@pytest.mark.parametrize("name", ["timm/resnet18", "smp/Unet/resnet18"])
def test_autocast(name: str, lab: SimpleNamespace) -> None:
    x = lab.example(name)
    student = binarize.convert(lab.build(name), example_inputs=x).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = student(x).float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters())


def test_moves_between_types_and_devices(lab: SimpleNamespace) -> None:
    x = lab.example("timm/resnet18")
    student = binarize.convert(lab.build("timm/resnet18"), example_inputs=x).eval()
    assert copy.deepcopy(student).double()(x.double()).dtype == torch.float64
    assert copy.deepcopy(student).to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    assert copy.deepcopy(student).to("meta")(x.to("meta")).shape == (2, 10)
    last = copy.deepcopy(student).to(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(
            last(x.to(memory_format=torch.channels_last)), student(x), atol=1e-3, rtol=1e-3
        )
