"""Layers answer what forwards ask them as the float layers did: classes, weights, attributes."""

from __future__ import annotations

import copy
import importlib
import io
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.errors import ModelError
from binarize.nn import ShiftedPReLU

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class OwnConv(nn.Conv2d):
    label = "mine"

    def reach(self) -> int:
        return int(self.kernel_size[0])


def conv(cin: int, cout: int, cls: Any = nn.Conv2d) -> Any:
    return cls(cin, cout, 3, padding=1)


class Taps(nn.Module):
    def __init__(self, kind: Any, act: Any = nn.ReLU, cls: Any = nn.Conv2d) -> None:
        super().__init__()
        self.kind = kind
        layers = [conv(3, 8, cls), act(), conv(8, 8, cls), act(), nn.MaxPool2d(2), conv(8, 8, cls)]
        self.f = nn.Sequential(*layers, act())
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for layer in self.f:
            x = layer(x)
            if isinstance(layer, self.kind):
                taps.append(x)
        return [self.head(tap) for tap in taps]


def ways(model: nn.Module) -> list[nn.Module]:
    """A network, converted, packed, and copies of these by every way there is."""
    student = binarize.convert(model.eval(), example_inputs=X).eval()
    packed = binarize.pack(student)
    stream = io.BytesIO()
    torch.save(student, stream)
    stream.seek(0)
    return [
        *(student, copy.deepcopy(student), pickle.loads(pickle.dumps(student))),
        torch.load(stream, weights_only=False),
        *(packed, packed.network, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))),
    ]


@pytest.mark.parametrize(
    ("kind", "act"),
    [
        (nn.ReLU, nn.ReLU),
        ((nn.ReLU, nn.LeakyReLU), nn.LeakyReLU),
        (nn.ReLU | nn.PReLU, nn.PReLU),
        (nn.SiLU, nn.SiLU),
        (nn.Hardtanh, nn.ReLU6),
        (nn.Conv2d, nn.ReLU),
        (nn.modules.conv._ConvNd, nn.ReLU),
        (OwnConv, nn.GELU),
    ],
)
def test_classes(kind: Any, act: Any) -> None:
    cls = OwnConv if kind is OwnConv else nn.Conv2d
    net = Taps(kind, act, cls)
    with torch.no_grad():
        wanted = len(net(X))
        first, *others = (model(X) for model in ways(net))
    assert len(first) == wanted > 2
    for other in others:
        torch.testing.assert_close(other, first)


def test_a_module_stays_what_it_is_itself() -> None:
    student = binarize.convert(Taps(nn.ReLU), example_inputs=X)
    act = student.f[3]
    assert isinstance(act, ShiftedPReLU)
    assert type(act).__name__ == "ShiftedPReLU"
    assert act.inplace is False
    assert list(act.state_dict()) == ["shift", "slope", "out_shift"]
    own = binarize.convert(Taps(nn.ReLU, cls=OwnConv), example_inputs=X).f[2]
    assert own.label == "mine"
    assert own.reach() == 3


class Asks(nn.Module):
    def __init__(self, how: str, bias: bool, policy_groups: int = 1) -> None:
        super().__init__()
        self.how = how
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=bias, groups=policy_groups)

    def forward(self, x: Tensor) -> Tensor:
        x, c = torch.sin(self.stem(x)), self.conv
        if self.how == "dtype":
            x = x.to(c.weight.dtype).to(c.weight.device).type_as(c.weight)
        if self.how == "shape":
            x = x[:, : c.weight.shape[1] * c.groups] * (c.weight.size(0) / 8)
        if self.how == "channels":
            x = x[:, : c.in_channels][:, : c.out_channels]
        if self.how == "padding":
            x = F.pad(x, [2, 2])[..., 2 * c.padding[0] : -2 * c.padding[1]]
        if self.how == "parameters":
            x = x.to(next(c.parameters()).dtype)
        if self.how == "is floating":
            x = x if c.weight.is_floating_point() else 2 * x
        if self.how == "bias":
            x = x if c.bias is None else -x
        if self.how == "bias shape":
            x = x if c.bias is None else x[:, : len(c.bias)].to(c.bias.dtype) * 2
        return self.head(F.relu(c(x)))


@pytest.mark.parametrize(
    "how", ["dtype", "shape", "channels", "padding", "parameters", "is floating", "bias",
            "bias shape"]
)  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.filterwarnings("ignore::binarize.errors.SlowWarning")  # some are no programs
@pytest.mark.parametrize("policy", ["bidense", "lqnet"])
def test_weights(how: str, bias: bool, policy: str) -> None:
    torch.manual_seed(0)
    net = Asks(how, bias).eval()
    student = binarize.convert(net, policy, example_inputs=X).eval()
    assert student.binarize_plan.layers[1].action == "binarize"
    # What the original answers to the question about its bias.
    sign = {"bias": -1, "bias shape": 2}.get(how, 1) if bias else 1
    read = []
    student.conv.register_forward_pre_hook(lambda _m, args: read.append(args[0]))
    with torch.no_grad():
        expected = student(X)
        assert torch.equal(read[0], sign * torch.sin(net.stem(X)))
        student.conv._forward_pre_hooks.clear()
        packed = binarize.pack(student)
        torch.testing.assert_close(packed.network(X), expected)
        torch.testing.assert_close(packed(X), expected)
    assert (packed.network.conv.bias is not None) == (student.conv.bias is not None) == bias
    assert packed.network.conv.weight.shape == net.conv.weight.shape


def test_the_type_that_is_asked_for_follows_the_network() -> None:
    student = binarize.convert(Asks("dtype", True), example_inputs=X).eval()
    packed = binarize.pack(student).network
    assert packed.conv.weight.dtype == torch.float32
    assert packed.to(torch.bfloat16).conv.weight.dtype == torch.bfloat16
    assert packed.conv.bits.dtype == torch.uint8


def test_bits_under_their_earlier_name_are_taken() -> None:
    student = binarize.convert(Asks("", True), example_inputs=X).eval()
    one, other = binarize.pack(student).network, binarize.pack(student).network
    state = {k.replace("conv.bits", "conv.weight"): v for k, v in one.state_dict().items()}
    other.conv.bits.zero_()
    other.load_state_dict(state)
    assert torch.equal(other.conv.bits, one.conv.bits)


def is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm2d)


class Normed(nn.Module):
    """Reads features after a layer that it finds by one of several type checks."""

    def __init__(self, how: str, act: Any = nn.ReLU) -> None:
        super().__init__()
        self.how, self.kinds = how, (nn.BatchNorm2d, nn.InstanceNorm2d)
        layers = []
        for width in (3, 8, 8, 8):
            layers += [nn.Conv2d(width, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), act()]
        self.f, self.head = nn.Sequential(*layers), nn.Conv2d(8, 2, 1)

    def is_tap(self, layer: nn.Module) -> bool:
        if self.how == "method":
            return isinstance(layer, self.kinds)
        if self.how == "function":
            return is_norm(layer)
        if self.how == "norm or activation":
            return isinstance(layer, nn.ReLU | nn.modules.batchnorm._BatchNorm)
        if self.how == "no identity":
            return not isinstance(layer, nn.Identity) and isinstance(type, type)
        return getattr(self, self.how.replace(" ", "_"))(layer)

    def type_of_norm(self, layer: nn.Module) -> bool:
        return type(layer) is nn.BatchNorm2d

    def type_of_activation(self, layer: nn.Module) -> bool:
        return type(layer).__name__ in ("ReLU", "LeakyReLU")

    def type_of_layer(self, layer: nn.Module) -> bool:
        kind = type(layer)
        return kind is nn.Conv2d

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = []
        for layer in self.f:
            x = layer(x)
            if self.is_tap(layer):
                taps.append(x)
        return [self.head(tap) for tap in taps]


class NoQuestion(Normed):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.head(self.f(x))] if isinstance(self.f, nn.Module) else []


WAYS = [
    *("method", "function", "norm or activation", "no identity"),
    *("type of norm", "type of activation"),
]


@pytest.mark.parametrize("how", WAYS)
def test_classes_of_norms_and_types(how: str) -> None:
    net = Normed(how)
    with torch.no_grad():
        wanted = len(net.eval()(X))
        first, *others = (model(X) for model in ways(net))
    assert len(first) == wanted >= 4
    for other in others:
        torch.testing.assert_close(other, first)


@pytest.mark.parametrize("how", WAYS)
def test_who_asks_is_told(how: str) -> None:
    plan = binarize.plan(Normed(how), example_inputs=X)
    decided = plan.activations if how == "type of activation" else plan.layers
    assert plan.part("layer") == plan.layers
    assert plan.part("activation") == plan.activations
    told = [d.reason for d in decided if "checks its" in d.reason]
    assert told
    assert all("test_type_checks.py:" in reason for reason in told)
    assert all(d.norm is None for d in plan.layers) or how == "type of activation"


def test_layers_whose_type_is_asked_for_stay() -> None:
    with pytest.raises(ModelError, match=r"checks its type \(test_type_checks.py:.*kind = "):
        binarize.plan(Normed("type of layer"), example_inputs=X)


ALONE = """
from torch import nn

class Alone(nn.Sequential):
    def forward(self, x):
        norms = 0
        for layer in self:
            x = layer(x)
            norms += isinstance(layer, nn.BatchNorm2d)
        return x * norms
"""


def test_a_check_in_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alone.py").write_text(ALONE)
    monkeypatch.syspath_prepend(tmp_path)
    alone = importlib.import_module("alone")
    try:
        net = alone.Alone(conv(3, 8), conv(8, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 2))
        (body,) = [d for d in binarize.plan(net, example_inputs=X).layers if d.site == "1"]
        assert body.norm is None
        assert "alone.py:9: " in body.reason
    finally:
        del sys.modules["alone"]


def test_no_question_no_change() -> None:
    plan = binarize.plan(NoQuestion(""), example_inputs=X)
    assert [d.norm for d in plan.layers] == [None, "f.4", "f.7", "f.10", None]
    assert "isinstance" not in globals()
    assert "type" not in globals()
