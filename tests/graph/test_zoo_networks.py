"""The conversion contract on networks of timm and segmentation_models_pytorch."""

from __future__ import annotations

import copy
import inspect
import io
import json
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import ModelError
from binarize.nn import BinaryLayer

NETWORKS = [
    "smp/Unet/resnet34",
    "smp/Unet/tu-convnext_tiny",
    "smp/UnetPlusPlus/mobilenet_v2",
    "smp/FPN/resnet18",
    "smp/UPerNet/tu-convnext_tiny",
    "smp/DeepLabV3Plus/mobilenet_v2",
    "smp/Linknet/efficientnet-b0",
    "smp/PSPNet/resnet18",
    "smp/MAnet/resnet18",
    "smp/PAN/resnet34",
    "timm/resnet18",
    "timm/resnet50",
    "timm/resnext50_32x4d",
    "timm/convnext_tiny",
    "timm/mobilenetv2_100",
    "timm/efficientnet_b0",
    "timm/vgg11",
    "timm/vgg16_bn",
    "timm/densenet121",
    "timm/regnety_008",
    "features/resnet18",
    "features/convnext_tiny",
    "features/efficientnet_b0",
    "features/vgg16_bn",
    "features/densenet121",
]
# Tried in this order; most decoders want multiples of the encoder's stride.
OTHER_SIZES = [(79, 101), (160, 96), (192, 128)]


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest, lab: SimpleNamespace) -> SimpleNamespace:
    name = request.param
    teacher, x = lab.build(name), lab.example(name)
    before = lab.snapshot(teacher)
    student = binarize.convert(teacher, example_inputs=x)
    return SimpleNamespace(name=name, teacher=teacher, student=student, x=x, before=before, lab=lab)


def decided(case: SimpleNamespace) -> dict[str, Any]:
    return {decision.site: decision for decision in case.student.binarize_plan.layers}


def test_the_teacher_is_untouched(case: SimpleNamespace) -> None:
    assert case.lab.same(case.before, case.lab.snapshot(case.teacher))
    ours = {id(p) for p in case.student.parameters()} | {id(m) for m in case.student.modules()}
    theirs = {id(p) for p in case.teacher.parameters()} | {id(m) for m in case.teacher.modules()}
    assert not ours & theirs
    storage = {p.data_ptr() for p in case.teacher.parameters()}
    assert not storage & {p.data_ptr() for p in case.student.parameters()}


def test_every_layer_is_binary_or_kept_with_a_reason(case: SimpleNamespace) -> None:
    plan = decided(case)
    theirs, ours = case.lab.layers(case.teacher), case.lab.layers(case.student)
    assert set(plan) == set(theirs)
    assert len(case.student.binarize_plan.layers) == len(plan)
    for site, decision in plan.items():
        assert decision.reason.strip(), site
        assert decision.rule.strip(), site
        assert tuple(decision.shape) == tuple(theirs[site].weight.shape), site
        if decision.action == "binarize":
            assert isinstance(ours[site], BinaryLayer), site
        elif decision.action == "keep":
            assert type(ours[site]) is type(theirs[site]), site
        else:
            assert decision.action in ("bypass", "remove")
            assert site not in ours, site
    gone = {site for site, decision in plan.items() if decision.action in ("bypass", "remove")}
    assert set(ours) == set(theirs) - gone
    assert any(isinstance(layer, BinaryLayer) for layer in ours.values())


def test_weights_are_carried_over(case: SimpleNamespace) -> None:
    ours = case.lab.layers(case.student)
    for name, layer in case.lab.layers(case.teacher).items():
        if name in ours:
            assert torch.equal(ours[name].weight, layer.weight), name
            assert ours[name].weight.requires_grad == layer.weight.requires_grad


def test_names_of_untouched_modules_survive(case: SimpleNamespace) -> None:
    plan = case.student.binarize_plan
    gone = [d.site for d in plan.layers if d.action in ("bypass", "remove")]
    gone += [d.norm for d in plan.layers if d.norm]
    gone += [d.site for d in plan.activations if d.action == "replace"]
    binary = {d.site for d in plan.layers if d.action == "binarize"}
    ours = dict(case.student.named_modules(remove_duplicate=False))
    for name, module in case.teacher.named_modules(remove_duplicate=False):
        if any(name == site or name.startswith(f"{site}.") for site in gone):
            continue
        if any(name.startswith(f"{site}.") for site in binary):
            continue
        # A container that held nothing but a removed projection may go with it.
        held = [n for n, child in module.named_modules(prefix=name) if not list(child.children())]
        if name and held and all(any(n == s or n.startswith(f"{s}.") for s in gone) for n in held):
            continue
        assert name in ours, name
        if name not in binary and not list(module.children()):
            assert type(ours[name]) is type(module), name
            state = ours[name].state_dict()
            for key, value in module.state_dict().items():
                assert torch.equal(state[key], value), f"{name}.{key}"


def test_it_is_called_as_before(case: SimpleNamespace) -> None:
    ours = inspect.signature(case.student.forward).parameters.values()
    theirs = inspect.signature(case.teacher.forward).parameters.values()
    assert [(p.name, p.kind, p.default) for p in ours] == [
        (p.name, p.kind, p.default) for p in theirs
    ]
    assert isinstance(case.student, type(case.teacher))
    assert case.student.training == case.teacher.training


def test_output_shapes_and_gradients(case: SimpleNamespace) -> None:
    teacher, student = copy.deepcopy(case.teacher).train(), copy.deepcopy(case.student).train()
    expected, got = teacher(case.x), student(case.x)
    assert case.lab.shapes(got) == case.lab.shapes(expected)
    tensors = case.lab.flat(got)
    assert all(torch.isfinite(t).all() for t in tensors)
    # Linear in the output, with unequal weights: a plain sum is constant after a norm.
    sum((t * torch.randn_like(t)).sum() for t in tensors).backward()
    sum((t * torch.randn_like(t)).sum() for t in case.lab.flat(expected)).backward()
    unused = {name.rpartition(".")[0] for name, p in teacher.named_parameters() if p.grad is None}
    for name, parameter in student.named_parameters():
        owner = name.rpartition(".")[0]
        if parameter.grad is None:
            # Only what the float network does not use either, and the parts of its units.
            assert any(owner == u or owner.startswith(f"{u}.") for u in unused), name
        else:
            assert torch.isfinite(parameter.grad).all(), name


def test_other_sizes(case: SimpleNamespace) -> None:
    teacher, student = copy.deepcopy(case.teacher).eval(), copy.deepcopy(case.student).eval()
    accepted = 0
    for size in OTHER_SIZES:
        x = torch.randn(1, 3, *size)
        try:
            with torch.no_grad():
                expected = case.lab.shapes(teacher(x))
        except (RuntimeError, ValueError, AssertionError):
            continue
        with torch.no_grad():
            assert case.lab.shapes(student(x)) == expected, size
        accepted += 1
        if accepted == 2:
            break
    assert accepted


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        result = model(x)
    return [result] if isinstance(result, Tensor) else list(result)


def test_copies_give_equal_outputs(case: SimpleNamespace) -> None:
    student = copy.deepcopy(case.student).eval()
    x = case.x[:1]
    expected = outputs(student, x)
    buffer = io.BytesIO()
    torch.save(student, buffer)
    buffer.seek(0)
    copies = [
        copy.deepcopy(student),
        pickle.loads(pickle.dumps(student)),
        torch.load(buffer, weights_only=False),
    ]
    for twin in copies:
        assert twin.binarize_plan == student.binarize_plan
        assert all(map(torch.equal, outputs(twin, x), expected))
    # The same network gives the same plan again, so that a state_dict can be loaded.
    fresh = binarize.convert(copy.deepcopy(case.teacher), example_inputs=x).eval()
    assert fresh.binarize_plan == student.binarize_plan
    assert fresh.binarize_plan.diff(student.binarize_plan) == []
    fresh.load_state_dict(student.state_dict())
    assert all(map(torch.equal, outputs(fresh, x), expected))


def test_modes_switch(case: SimpleNamespace) -> None:
    student = copy.deepcopy(case.student)
    student.train()
    assert all(module.training for module in student.modules())
    student.eval()
    assert not any(module.training for module in student.modules())
    state = {key: value.clone() for key, value in student.state_dict().items()}
    first, second = outputs(student, case.x), outputs(student, case.x)
    assert all(map(torch.equal, first, second))
    assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())
    student.train()
    outputs(student, case.x)
    moved = [
        key
        for key, value in student.state_dict().items()
        if key.endswith("running_mean") and not torch.equal(value, state[key])
    ]
    assert moved


def test_the_plan_survives_plain_data(case: SimpleNamespace) -> None:
    plan = case.student.binarize_plan
    assert binarize.Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_converting_twice_is_refused(case: SimpleNamespace, told: Any) -> None:
    before = case.lab.snapshot(case.student)
    for call in (binarize.convert, binarize.plan):
        with pytest.raises(ModelError) as raised:
            call(case.student, example_inputs=case.x)
        message = told(raised.value)
        assert message.startswith("model=")
        assert "already" in message
    assert case.lab.same(before, case.lab.snapshot(case.student))
