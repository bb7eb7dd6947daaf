"""What cannot be converted is refused in one line, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import binarize
from binarize.errors import ModelError, PolicyError

X = torch.randn(1, 3, 16, 16)


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 2, 1),
    )


@pytest.fixture
def refuse(told: Callable[[BaseException], str], lab: SimpleNamespace) -> Callable[..., str]:
    def check(model: Any, **how: Any) -> str:
        before = lab.snapshot(model) if type(model) is nn.Sequential else None
        messages = []
        for call in (binarize.plan, binarize.convert):
            with pytest.raises(ModelError) as raised:
                call(model, **how)
            messages.append(told(raised.value))
        assert messages[0] == messages[1]
        if before is not None:
            assert lab.same(before, lab.snapshot(model))
        return messages[0]

    return check


@pytest.mark.parametrize("model", [None, 3, "resnet18", nn.Conv2d, [net()]])
def test_not_a_module(model: Any, refuse: Callable[..., str]) -> None:
    message = refuse(model, example_inputs=X)
    assert message.startswith("model=")
    assert "Module" in message


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 2, 1)),
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)),
    ],
)
def test_nothing_to_binarize(model: nn.Module, refuse: Callable[..., str]) -> None:
    message = refuse(model, example_inputs=X)
    assert message.startswith("model=")
    assert "nothing to binarize" in message


@pytest.mark.parametrize("how", [{}, {"overrides": {"*": "binarize"}}, {"policy": "deploy"}])
@pytest.mark.parametrize(
    ("model", "x"),
    [(nn.Conv2d(8, 4, 1), torch.ones(1, 8, 2, 2)), (nn.Linear(3, 2), torch.ones(2, 3))],
)
def test_a_layer_is_no_network(
    model: nn.Module, x: Tensor, how: Any, refuse: Callable[..., str]
) -> None:
    """Nothing holds it that could hold another in its place."""
    message = refuse(model, example_inputs=x, **how)
    assert message.endswith("the network is a single layer; wrap it: torch.nn.Sequential(layer)")


def test_an_override_where_there_are_no_layers() -> None:
    with pytest.raises(PolicyError, match="remove it: the network has no convolution or"):
        binarize.plan(nn.Sequential(nn.ReLU()), example_inputs=X, overrides={"*": "keep"})


def test_a_transformer_is_told_how_to_convert_its_tokens(refuse: Callable[..., str]) -> None:
    import timm

    model = timm.create_model("test_vit", num_classes=4)
    remedy = "overrides={'role:attention': 'keep', 'role:tokens': 'binarize'}"
    assert remedy in refuse(model)
    student = binarize.convert(
        model, overrides={"role:attention": "keep", "role:tokens": "binarize"}
    )
    for decision in student.binarize_plan.layers:
        assert (decision.action == "binarize") == (".mlp." in decision.site), decision.site
        assert ("tokens" in decision.roles) == decision.site.startswith("blocks."), decision.site
        assert ("attention" in decision.roles) == (".attn." in decision.site), decision.site
    x = torch.randn(2, 3, 160, 160)
    assert student(x).shape == (2, 4)
    (student(x) * torch.randn(2, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


class Narrow(nn.Module):
    """Its second convolution does not fit what the first one gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(9, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(x)  # here


@pytest.mark.parametrize("given", [None, X])
def test_a_forward_that_fails_is_told_with_module_and_line(
    given: Any, refuse: Callable[..., str]
) -> None:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if text.endswith("# here"))
    model = nn.Sequential(nn.Conv2d(3, 3, 1), Narrow())
    message = refuse(model, example_inputs=given)
    assert "1.second (Conv2d)" in message
    assert f"test_refusals.py:{line}" in message
    assert "to have 9 channels" in message
    assert "example_inputs" in message.rpartition("; ")[2] or given is not None


def test_everything_overridden_away(refuse: Callable[..., str]) -> None:
    assert "nothing to binarize" in refuse(net(), example_inputs=X, overrides={"*": "keep"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["0.weight", "2.weight", "2.bias", "1.weight"])
def test_weights_that_are_not_finite(place: str, value: float, refuse: Callable[..., str]) -> None:
    model = net()
    with torch.no_grad():
        model.get_parameter(place).view(-1)[1] = value
    message = refuse(model, example_inputs=X)
    assert message.startswith("model=")
    assert place in message
    assert "NaN" in message


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integer_images(dtype: torch.dtype, refuse: Callable[..., str]) -> None:
    message = refuse(net(), example_inputs=torch.zeros(1, 3, 16, 16, dtype=dtype))
    assert message.startswith("example_inputs=")
    assert str(dtype) in message
    assert "float" in message.split("; ")[-1]


@pytest.mark.parametrize(
    "inputs",
    [
        torch.zeros(1, 4, 16, 16),
        torch.zeros(3),
        (X, X),
        {"image": X},
        "image.png",
        3,
        (),
    ],
)
def test_inputs_that_do_not_fit(inputs: Any, refuse: Callable[..., str]) -> None:
    message = refuse(net(), example_inputs=inputs)
    assert message.startswith("example_inputs=")


def test_inputs_of_another_precision(refuse: Callable[..., str]) -> None:
    message = refuse(net().double(), example_inputs=X)
    assert message.startswith("example_inputs=")


def test_inputs_on_another_device(refuse: Callable[..., str]) -> None:
    message = refuse(net(), example_inputs=X.to("meta"))
    assert message.startswith("example_inputs=")
    assert "meta" in message
    assert "cpu" in message
    message = refuse(net().to("meta"), example_inputs=X)
    assert "meta" in message
    assert "cpu" in message


def test_a_lazy_layer(refuse: Callable[..., str]) -> None:
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1))
    with pytest.raises(ModelError) as raised:
        binarize.convert(model, example_inputs=X)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith("model=")
    assert "lazy" in message.lower() or "uninitialized" in message.lower()
    assert isinstance(model[0], nn.LazyConv2d), "nothing may be initialised on the way"


def test_a_forward_that_fails(refuse: Callable[..., str]) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("first line\nsecond line")

    message = refuse(Broken(), example_inputs=X)
    assert "first line" in message
    refuse(Broken())


def test_no_input_can_be_found(refuse: Callable[..., str]) -> None:
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.inner(x + y)

    message = refuse(TwoInputs())
    assert "example_inputs" in message
    assert binarize.convert(TwoInputs(), example_inputs=(X, X)) is not None


@pytest.mark.parametrize("policy", ["bidens", 3, None])
def test_policies_are_refused_before_the_model_is_read(
    policy: Any, told: Callable[[BaseException], str]
) -> None:
    with pytest.raises(binarize.BinarizeError) as raised:
        binarize.convert(net(), policy, example_inputs=X)
    assert told(raised.value).startswith("policy=")


def test_a_model_converted_already(refuse: Callable[..., str]) -> None:
    student = binarize.convert(net(), example_inputs=X)
    message = refuse(student, example_inputs=X)
    assert message.startswith("model=")
    assert "already" in message
    # Also where the converted network is a part of a larger one.
    wrapped = nn.Sequential(student, nn.Identity())
    assert "already" in refuse(wrapped, example_inputs=X)


# Newer versions of torch deprecate scripting, but there are scripted models.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:FutureWarning")
def test_a_scripted_model(refuse: Callable[..., str]) -> None:
    scripted = torch.jit.script(net())
    assert "has no Python forward" in refuse(scripted, example_inputs=X)


def test_statistics_that_are_not_finite() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.ReLU())
    model[1].running_var[2] = torch.nan
    with pytest.raises(ModelError, match=r"1\.running_var.*holds NaN or infinity"):
        binarize.convert(model)


def test_a_forward_that_cannot_be_rewritten_names_its_line() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.head = (nn.Conv2d(*c, 1) for c in ((3, 8), (8, 8), (8, 2)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            if x.sum() >= 0 or len(x.shape) == 4:
                x = torch.relu(self.a(x))
            return self.head(x)

    plan = binarize.plan(Asks(), example_inputs=torch.zeros(1, 3, 8, 8))
    (cause,) = plan.opaque.values()
    assert "test_refusals.py:" in cause
    assert "if x.sum() >= 0 or len(x.shape) == 4" in cause
    assert "symbolic" not in cause
