"""Layers whose weight or forward is not what it looks like."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import binarize
from binarize.graph import rewrite, scopes
from binarize.graph.rewrite import apply_plan
from binarize.graph.scopes import trace_scope
from binarize.nn import BinaryLayer

X = torch.randn(2, 3, 13, 14, generator=torch.Generator().manual_seed(5))


def sandwich(*middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *middle, nn.Conv2d(8, 2, 1))


def convert(model: nn.Module) -> nn.Module:
    return binarize.convert(model, example_inputs=X)


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_a_parametrized_weight_is_taken_as_the_layer_uses_it(wrap: object) -> None:
    conv = wrap(nn.Conv2d(8, 8, 3, padding=1))
    with torch.no_grad():
        for parameter in conv.parametrizations.parameters():
            parameter.mul_(1.7)
    student = convert(sandwich(conv))
    assert isinstance(student[1], BinaryLayer)
    torch.testing.assert_close(student[1].weight.detach(), conv.weight.detach())
    student(X).sum().backward()
    assert student[1].weight.grad is not None


def test_tied_weights_stay_tied() -> None:
    one, other = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    other.weight = one.weight
    student = convert(sandwich(one, nn.ReLU(), other))
    assert student[1].weight is student[3].weight
    assert student[1].weight is not one.weight


def test_standardized_weights_keep_their_signs() -> None:
    conv = StdConv2d(8, 8, 3, padding=1)
    with torch.no_grad():
        conv.weight.add_(3.0)
    student = convert(sandwich(conv))
    mean = conv.weight.mean((1, 2, 3), keepdim=True)
    expected = torch.where(conv.weight >= mean, 1.0, -1.0)
    assert (student[1].binary_weight()[0] == expected).float().mean() > 0.99


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_tensorflow_padding_is_kept(stride: int) -> None:
    model = sandwich(Conv2dSame(8, 8, 3, stride=stride)).eval()
    student = convert(model).eval()
    for size in ((13, 14), (8, 9), (7, 7)):
        x = torch.randn(1, 3, *size)
        assert student(x).shape == model(x).shape
    # Without its bypass the unit is the float layer on signs.
    student[1].bypass = None
    h = model[0](X)
    signs = torch.where(h >= h.mean((2, 3), keepdim=True), 1.0, -1.0)
    with torch.no_grad():
        bias = model[1].bias.clone()
        weight = model[1].weight
        weight.copy_(weight.sign() * weight.abs().mean((1, 2, 3), keepdim=True))
        model[1].bias.zero_()
    raw = model[1](signs) / (1 + student[1].norm.eps) ** 0.5
    torch.testing.assert_close(student(X), model[2](raw + bias.view(1, -1, 1, 1)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layer", [StdConv2dSame, ScaledStdConv2dSame])
def test_standardized_layers_pad_once(layer: type[nn.Conv2d], stride: int) -> None:
    model = sandwich(layer(8, 8, 3, stride=stride)).eval()
    student = convert(model).eval()
    assert isinstance(student[1], BinaryLayer)
    for size in ((13, 14), (8, 9), (7, 7)):
        x = torch.randn(1, 3, *size)
        assert student(x).shape == model(x).shape


class Scaled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class Outside(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.called = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.called(F.conv2d(x, self.conv.weight, self.conv.bias, padding=1))


@pytest.mark.parametrize(
    ("middle", "site"), [(Scaled(8, 8, 3, padding=1), "1"), (Outside(), "1.conv")]
)
def test_a_layer_that_a_unit_cannot_stand_in_for_is_kept(middle: nn.Module, site: str) -> None:
    model = sandwich(middle, nn.Conv2d(8, 8, 3, padding=1))
    student = convert(model)
    decision = next(d for d in student.binarize_plan.layers if d.site == site)
    assert decision.action == "keep"
    assert decision.reason
    assert type(student.get_submodule(site)) is type(model.get_submodule(site))


class Mixed(nn.Module):
    """A convolution that mixes its kernel of several for every image, as CondConv does."""

    def __init__(self) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.kernel_size = 8, 8, (3, 3)
        self.weight = nn.Parameter(torch.randn(4, 8 * 8 * 9))

    def forward(self, x: Tensor) -> Tensor:
        shares = x.mean((1, 2, 3))[:, None].expand(-1, 4).softmax(1)
        kernels = (shares @ self.weight).view(-1, 8, 3, 3)
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), kernels, padding=1, groups=len(x))
        return y.view(x.shape)


def test_a_convolution_that_is_none_of_torchs_is_kept_with_its_reason() -> None:
    model = sandwich(Mixed(), nn.Conv2d(8, 8, 3, padding=1))
    student = convert(model)
    decision = next(d for d in student.binarize_plan.layers if d.site == "1")
    assert (decision.action, decision.kind, decision.shape) == ("keep", "Mixed", (4, 576))
    assert decision.reason.startswith("a custom convolution class")
    assert type(student[1]) is Mixed
    order = [d.site for d in student.binarize_plan.layers]
    assert order.index("0") < order.index("1") < order.index("2")
    # Counted once, by the report too.
    report = binarize.report(student, example_inputs=X)
    row = next(row for row in report.layers if row.name == "1")
    assert (row.part, row.decision, row.float_params) == ("layer", "keep", 4 * 576)
    assert sum(row.float_params + row.binary_params for row in report.layers) == sum(
        p.numel() for p in student.parameters()
    )
    student(X).sum().backward()
    assert student[1].weight.grad is not None


class Shifted(nn.Module):
    """A residual block that makes a constant, which the graph of its forward takes from it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x - torch.tensor([2.0])
        return x + self.other(F.relu(self.one(x)))


def test_constants_of_a_rewritten_forward_come_along() -> None:
    model = sandwich(Shifted())
    student = convert(model)
    assert any(d.scope == "1" for d in student.binarize_plan.edits)
    assert not [name for name in vars(model[1]) if "constant" in name]
    twin = copy.deepcopy(model)
    apply_plan(twin, student.binarize_plan)
    twin.load_state_dict(student.state_dict())
    assert torch.equal(twin(X), student(X))


def test_a_conversion_traces_every_forward_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[str] = []

    def count(module: nn.Module, given: object = None) -> object:
        traced.append(type(module).__name__)
        return trace_scope(module, given)  # type: ignore[arg-type]

    monkeypatch.setattr(scopes, "trace_scope", count)
    monkeypatch.setattr(rewrite, "trace_scope", count)
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    student = binarize.convert(model)
    blocks = {d.scope for d in student.binarize_plan.edits}
    assert len(blocks) == 8
    assert traced.count("BasicBlock") == 8


@pytest.mark.parametrize(
    ("maker", "sizes"),
    [
        (lambda: (nn.Conv1d(3, 8, 3), nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 2, 1)), (20,)),
        (lambda: (nn.Conv3d(3, 8, 3), nn.Conv3d(8, 8, 3, 2, 1), nn.Conv3d(8, 2, 1)), (8, 9, 10)),
        (
            lambda: (nn.Conv1d(3, 8, 3), nn.ConvTranspose1d(8, 8, 4, 2, 1), nn.Conv1d(8, 2, 1)),
            (20,),
        ),
    ],
)
def test_other_ranks(maker: object, sizes: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *sizes)
    model = nn.Sequential(*maker())
    student = binarize.convert(model, example_inputs=x)
    assert isinstance(student[1], BinaryLayer)
    assert student(x).shape == model(x).shape
    student(x).sum().backward()


def test_unused_layers_are_told_and_harm_nothing() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = sandwich(nn.Conv2d(8, 8, 3, padding=1))
            self.spare = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    student = convert(Unused())
    last = student.binarize_plan.layers[-1]
    assert last.site == "spare"
    assert "never" in last.reason
    assert student(X).shape == (2, 2, 13, 14)


class Bent(nn.Module):
    """An activation of its own, without parameters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.gelu(x) * 1.7


@pytest.mark.parametrize(
    "place", [{"device": "meta"}, {"dtype": torch.float64}], ids=["device", "dtype"]
)
def test_a_new_activation_lies_where_the_network_does(place: dict[str, Any]) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), Bent(), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)
    ).to(**place)
    x = torch.zeros(1, 3, 16, 16, **place)
    student = binarize.convert(model, example_inputs=x)
    (activation,) = student.binarize_plan.activations
    assert (activation.action, activation.rewrite) == ("replace", True)
    assert {(p.device, p.dtype) for p in student.parameters()} == {(x.device, x.dtype)}
    assert student(x).shape == model(x).shape
