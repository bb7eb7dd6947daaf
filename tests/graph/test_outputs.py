"""A layer that makes an output stays float whatever follows; feature maps are not outputs."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


class Net(nn.Module):
    """A body of 16 channels, a tail that makes the output, and a way to wrap it."""

    def __init__(self, wrap: str, channels: int = 3) -> None:
        super().__init__()
        self.wrap = wrap
        self.stem, self.a, self.b, self.tail = (
            conv(3, 16),
            conv(16, 16),
            conv(16, 16),
            conv(16, channels),
        )
        if wrap == "residual head":
            self.low, self.tail = (
                nn.Sequential(conv(16, 4), nn.BatchNorm2d(4), nn.ReLU()),
                conv(4, 4),
            )
        if wrap in ("fused", "fused relu"):
            self.fuse = conv(2 * channels, channels, 1)
            self.side = conv(16, channels)
        if wrap == "iterative":
            self.again = conv(16 + channels, 16)
        if wrap in ("frozen", "mode"):
            self.expect = conv(channels, 1, 1, bias=False).requires_grad_(False)
        if wrap == "fixed product":
            self.register_buffer("bins", torch.arange(float(channels)))

    def forward(self, x: Tensor) -> Any:
        f = F.relu(self.b(F.relu(self.a(F.relu(self.stem(x))))))
        if self.wrap == "residual head":
            y = self.low(f)
            return self.tail(y) + y
        if self.wrap in ("fused", "fused relu"):
            own, side = self.tail(f), self.side(f)
            if self.wrap == "fused relu":
                own, side = F.relu(own), F.relu(side)
            return self.fuse(torch.cat([own, side], 1)), own, side
        if self.wrap == "iterative":
            flow, found = torch.zeros_like(self.tail(f)), []
            for _ in range(2):
                f = F.relu(self.again(torch.cat([f, flow], 1)))
                flow = flow + self.tail(f)
                found.append(flow)
            return found
        if self.wrap == "frozen":
            return self.expect(self.tail(f).softmax(1))
        if self.wrap == "mode":
            return self.tail(f) if self.training else self.expect(self.tail(f).softmax(1))
        return WRAPS[self.wrap](self, x, self.tail(f))


Wrap = Callable[[Any, Tensor, Tensor], Any]
WRAPS: dict[str, Wrap] = {
    "plain": lambda _m, _x, y: y,
    "global residual": lambda _m, x, y: x + y,
    "subtracted": lambda _m, x, y: x - y,
    "resized residual": lambda _m, x, y: (
        F.interpolate(x, scale_factor=2.0) + F.interpolate(y, scale_factor=2.0)
    ),
    "relu": lambda _m, _x, y: F.relu(y),
    "relu6": lambda _m, _x, y: F.relu6(y),
    "leaky": lambda _m, _x, y: F.leaky_relu(y, 0.1),
    "residual and relu": lambda _m, x, y: F.relu(x + y),
    "clamp": lambda _m, x, y: (x + y).clamp(0, 1),
    "softplus": lambda _m, _x, y: F.softplus(y),
    "exp": lambda _m, _x, y: y.exp(),
    "scaled tanh": lambda _m, _x, y: 10 * y.tanh(),
    "softmax": lambda _m, _x, y: y.softmax(1),
    "resize": lambda _m, _x, y: F.interpolate(y, size=(20, 20), mode="bilinear"),
    "resized relu": lambda _m, _x, y: F.relu(F.interpolate(y, scale_factor=2.0)),
    "permuted": lambda _m, _x, y: y.permute(0, 2, 3, 1).flatten(1, 2),
    "split": lambda _m, _x, y: y.split(1, dim=1),
    "concatenated": lambda _m, _x, y: torch.cat([y.flatten(2), y.flatten(2)], 2),
    "normalised": lambda _m, _x, y: F.normalize(y, dim=1),
    "fixed product": lambda m, _x, y: torch.einsum("nchw,c->nhw", y.softmax(1), m.bins),
}
TREES = ["residual head", "fused", "fused relu", "iterative", "frozen", "mode"]
# Behind the residual head's input, which is a part of the output, stands one too.
KEPT_ACTIVATIONS = {
    "residual head",
    "relu",
    "relu6",
    "residual and relu",
    "resized relu",
    "fused relu",
    "leaky",
}


@pytest.mark.parametrize("wrap", [*WRAPS, *TREES])
def test_what_makes_an_output_stays(wrap: str) -> None:
    torch.manual_seed(0)
    model = Net(wrap)
    plans = [
        binarize.plan(model.train(mode), example_inputs=torch.zeros(1, 3, 32, 32))
        for mode in (True, False)
    ]
    assert plans[0] == plans[1]
    layers = {d.site: d for d in plans[0].layers}
    assert layers["tail"].action == "keep"
    assert "prediction" in layers["tail"].roles
    assert {layers[site].action for site in ("a", "b")} == {"binarize"}
    last = [d for d in plans[0].activations if "ends an output" in d.reason]
    assert bool(last) == (wrap in KEPT_ACTIVATIONS)
    assert all(d.action == "keep" for d in last)


@pytest.mark.parametrize("wrap", ["residual head", "relu", "fused", "frozen", "iterative"])
def test_a_guess_says_how_to_mend_it(wrap: str) -> None:
    line = "overrides={'tail': 'binarize'}"
    (tail,) = [d for d in binarize.plan(Net(wrap)).layers if d.site == "tail"]
    assert line in tail.reason
    (tail,) = [
        d
        for d in binarize.plan(Net(wrap), overrides={"tail": "binarize"}).layers
        if d.site == "tail"
    ]
    assert tail.action == "binarize"
    assert line not in tail.reason
    (sure,) = [d for d in binarize.plan(Net("plain")).layers if d.site == "tail"]
    assert "overrides" not in sure.reason


def test_depth_stays_non_negative() -> None:
    torch.manual_seed(0)
    student = binarize.convert(Net("relu", channels=1)).eval()
    assert student(torch.randn(4, 3, 32, 32)).min() >= 0


class Features(nn.Module):
    """Feature maps of several scales, as an encoder returns them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        widths = (16, 32, 64)
        self.stem = conv(3, 16)
        self.convs = nn.ModuleList(
            conv(a, b, stride=2) for a, b in zip((16, *widths[:-1]), widths, strict=True)
        )
        self.norms = nn.ModuleList(
            nn.GroupNorm(1, w) if kind == "layer norm" else nn.BatchNorm2d(w) for w in widths
        )
        self.mix = nn.ModuleList(conv(w, w) for w in widths)

    def forward(self, x: Tensor) -> list[Tensor]:
        x, found = F.relu(self.stem(x)), []
        for layer, norm, mix in zip(self.convs, self.norms, self.mix, strict=True):
            x = layer(x)
            if self.kind in ("norm", "layer norm", "norm relu"):
                x = norm(x)
            if self.kind in ("norm relu", "relu"):
                x = F.relu(x)
            if self.kind == "residual":
                x = x + mix(F.relu(x))
            if self.kind == "dense":
                x = torch.cat([x, mix(F.relu(norm(x)))], 1)[:, : x.shape[1]]
            found.append(x)
        return found


@pytest.mark.parametrize("kind", ["norm", "layer norm", "norm relu", "relu", "residual"])
def test_feature_maps_are_no_outputs(kind: str) -> None:
    plan = binarize.plan(Features(kind))
    running = [d for d in plan.layers if "unused" not in d.roles]
    assert [d.site for d in running if d.action == "keep"] == ["stem"]
    if kind in ("relu", "residual"):
        # Whether these are outputs is a guess.
        assert any("overrides=" in d.reason for d in running)
    else:
        assert not any("overrides=" in d.reason for d in running)


class Matches(nn.Module):
    """Returns how alike any two positions are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 16), conv(16, 16), conv(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.a(x).flatten(2).transpose(1, 2) @ self.b(x).flatten(2)


def test_a_product_of_two_feature_maps_is_no_frozen_layer() -> None:
    roles = {d.site: d.roles for d in binarize.plan(Matches()).layers}
    assert not any("prediction" in each for each in roles.values())


class Side(nn.Module):
    """Returns a prediction as wide as the stem, which further layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.side = conv(3, 16), conv(16, 32), conv(32, 16)
        self.mix, self.head = conv(16, 16), conv(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        side = self.side(F.relu(self.body(F.relu(self.stem(x)))))
        return self.head(F.relu(self.mix(side))), side


def test_the_reason_of_a_guess_is_true() -> None:
    (side,) = [d for d in binarize.plan(Side()).layers if d.site == "side"]
    assert side.action == "keep"
    assert "it narrows, has a bias and is returned unchanged" in side.reason


class Auxiliary(nn.Module):
    """A head, and another one with a block of its own that only training calls."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.stem, self.body = conv(3, 16), conv(16, 16)
        self.aux = nn.Sequential(
            conv(16, 16, bias=False), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 5, 1)
        )
        self.head, self.fails = conv(16, 5, 1), fails
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor, targets: Any = None) -> Any:
        x = F.relu(self.body(F.relu(self.stem(x))))
        if self.training:
            self.seen += 1
            if self.fails:
                raise ValueError("targets are wanted")
            random.random()
            np.random.rand()
            return self.head(self.dropout(x)), self.aux(x)
        return self.head(x)


def test_layers_of_training_alone_are_decided() -> None:
    model = Auxiliary()
    student = binarize.convert(model)
    plan = {d.site: d for d in student.binarize_plan.layers}
    assert plan["aux.3"].action == "keep"
    assert plan["aux.3"].roles == ("prediction", "training")
    assert plan["aux.0"].action == "binarize"
    assert plan["aux.0"].norm == "aux.1"
    assert {d.site: d.action for d in student.binarize_plan.activations}["aux.2"] == "replace"
    assert [d.site for d in student.binarize_plan.layers][-2:] == ["aux.0", "aux.3"]
    head, aux = student.train()(torch.randn(2, 3, 16, 16))
    assert head.shape == aux.shape == (2, 5, 16, 16)
    assert student.eval()(torch.randn(2, 3, 16, 16)).shape == (2, 5, 16, 16)
    again = binarize.Plan.from_dict(student.binarize_plan.to_dict())
    assert again == student.binarize_plan


def test_the_run_in_training_mode_leaves_no_trace() -> None:
    model = Auxiliary().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    binarize.plan(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert not model.training


def test_a_network_that_does_not_run_in_training_mode() -> None:
    plan = {d.site: d for d in binarize.plan(Auxiliary(fails=True)).layers}
    assert plan["aux.3"].roles == ("unused",)
    assert plan["head"].action == "keep"


def test_a_network_that_ignores_the_mode_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import binarize.graph.modes as modes

    monkeypatch.setattr(modes, "trace", lambda *_args, **_options: pytest.fail("a second run"))
    model = nn.Sequential(
        conv(3, 16), nn.BatchNorm2d(16), nn.Dropout(0.1), conv(16, 16), conv(16, 2)
    )
    binarize.plan(model)
