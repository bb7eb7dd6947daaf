"""Flags and optional arguments of a forward: decided as without them, and they go on working."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.errors import BinarizeError, ModelError
from binarize.nn import ShiftedPReLU

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(3))
MASK = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(4))


def conv(cin: int, cout: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout))


class Plain(nn.Module):
    def __init__(self, residual: bool = True, act: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.residual, self.act = residual, act
        self.stem, self.a, self.b = conv(3, 8), conv(8, 8), conv(8, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def body(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        y = self.b(self.act(self.a(x)))
        return self.act(y + x) if self.residual else self.act(y)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.body(x))


class Flag(Plain):
    def forward(self, x: Tensor, feats: Any = False) -> Any:
        f = self.body(x)
        if feats:
            return self.head(f), f
        return self.head(f)


class Keyword(Plain):
    def forward(self, x: Tensor, *, feats: bool = False) -> Any:
        f = self.body(x)
        return self.head(f) if not feats else {"out": self.head(f), "feats": f}


class Early(Plain):
    def forward(self, x: Tensor, /, feats: bool = False, *rest: Any, **more: Any) -> Any:
        x = self.act(self.stem(x))
        if feats:
            return x
        y = self.b(self.act(self.a(x)))
        return self.head(self.act(y + x) if self.residual else self.act(y))


class Optional(Plain):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        f = self.body(x)
        if mask is not None:
            f = f * mask
        return self.head(f)


class Before(Plain):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        if mask is not None:
            x = F.relu(x * mask + 1)
        return self.head(self.body(x))


class FlagOrNone(Plain):
    def forward(self, x: Tensor, feats: bool | None = None) -> Any:
        f = self.body(x)
        return (self.head(f), f) if feats else self.head(f)


class Choice(Plain):
    def forward(self, x: Tensor, level: int = 0) -> Any:
        x = self.act(self.stem(x))
        if level == 2:
            return x
        y = self.b(self.act(self.a(x)))
        y = self.act(y + x) if self.residual else self.act(y)
        return y if level > 0 else self.head(y)


class Word(Plain):
    def forward(self, x: Tensor, mode: str = "tensor") -> Any:
        f = self.body(x)
        if mode == "tuple":
            return self.head(f), f
        return self.head(f)


class Two(Plain):
    def forward(self, x: Tensor, mask: Tensor | None = None, feats: bool = False) -> Any:
        f = self.body(x)
        if feats:
            return (self.head(f), f) if mask is None else (self.head(f * mask), f)
        return self.head(f if mask is None else f * mask)


class Wider(Plain):
    """Its other way has activations of other widths at the same place."""

    def __init__(self, name: str, *style: Any) -> None:
        super().__init__(*style)
        self.name, self.back = name, conv(12, 8)
        self.add_module(name, conv(8, 12))

    def forward(self, x: Tensor, wide: bool = False) -> Any:
        x = self.act(self.stem(x))
        other = getattr(self, self.name)
        y = self.back(self.act(other(x))) if wide else self.b(self.act(self.a(x)))
        return self.head(self.act(y + x) if self.residual else self.act(y))


class Part(nn.Module):
    """The flag belongs to a part of the network."""

    def __init__(self, of: type[Plain]) -> None:
        super().__init__()
        self.part, self.last = of(), nn.Conv2d(2, 2, 1)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.part(x))


CASES: list[tuple[type[Plain], list[dict[str, Any]]]] = [
    (Flag, [{}, {"feats": True}, {"feats": False}]),
    (Keyword, [{}, {"feats": True}]),
    (Early, [{}, {"feats": True}]),
    (Optional, [{}, {"mask": None}, {"mask": MASK}]),
    (Before, [{}, {"mask": MASK}]),
    (FlagOrNone, [{}, {"feats": True}, {"feats": False}]),
    (Choice, [{}, {"level": 0}, {"level": 1}, {"level": 2}]),
    (Word, [{}, {"mode": "tuple"}]),
    (Two, [{}, {"mask": MASK}, {"feats": True}, {"mask": MASK, "feats": True}]),
]
STYLES = [(True, F.relu), (False, F.silu)]


def variant(cls: type[Plain], residual: bool, act: Any) -> nn.Module:
    torch.manual_seed(0)
    return cls(residual, act).eval()


def decisions(plan: Any) -> list[Any]:
    return [(*d.place, d.summary) for d in plan.decisions]


def prelus(model: nn.Module) -> int:
    return sum(isinstance(m, ShiftedPReLU) for m in model.modules())


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("residual", "act"), STYLES)
@pytest.mark.parametrize("cls", [cls for cls, _ in CASES])
def test_decided_as_without_the_flag(cls: type[Plain], residual: bool, act: Any) -> None:
    plain = binarize.plan(variant(Plain, residual, act), example_inputs=X)
    plan = binarize.plan(variant(cls, residual, act), example_inputs=X)
    assert not plan.opaque
    assert decisions(plan) == decisions(plain)


@pytest.mark.parametrize(("residual", "act"), STYLES)
@pytest.mark.parametrize(("cls", "calls"), CASES)
def test_all_values_work(
    cls: type[Plain], calls: list[dict[str, Any]], residual: bool, act: Any
) -> None:
    net = variant(cls, residual, act)
    student = binarize.convert(net, example_inputs=X).eval()
    plain = binarize.convert(variant(Plain, residual, act), example_inputs=X).eval()
    plain.load_state_dict(student.state_dict())
    assert prelus(student) == prelus(plain) > 0
    # What the ways have in common, from the network without the flag.
    got: dict[str, Tensor] = {}
    plain.head.register_forward_pre_hook(lambda _m, args: got.update(f=args[0]))
    with torch.no_grad():
        assert_same(student(X), plain(X))
        f = got["f"]
        for given in calls:
            wanted, found = net(X, **given), student(X, **given)
            assert type(wanted) is type(found)
            if cls in (Flag, FlagOrNone) and given.get("feats"):
                assert_same(found, (plain.head(f), f))
            if cls is Keyword and given.get("feats"):
                assert_same(found, {"out": plain.head(f), "feats": f})
            if cls is Optional and given.get("mask") is not None:
                assert_same(found, plain.head(f * MASK))
            if cls is Before and given.get("mask") is not None:
                assert_same(found, plain(F.relu(X * MASK + 1)))
            if cls is Choice and given.get("level") == 1:
                assert_same(found, f)
            if cls is Two and given.get("feats"):
                masked = f * MASK if "mask" in given else f
                assert_same(found, (plain.head(masked), f))
            assert type(copy.deepcopy(student).train()(X, **given)) is type(wanted)


@pytest.mark.parametrize(("cls", "calls"), CASES)
def test_copies_files_and_bits(
    cls: type[Plain], calls: list[dict[str, Any]], tmp_path: Any
) -> None:
    net = variant(cls, True, F.relu)
    student = binarize.convert(net, example_inputs=X).eval()
    stream = io.BytesIO()
    torch.save(student, stream)
    stream.seek(0)
    binarize.save(student, tmp_path / "net.safetensors")
    packed = binarize.pack(student)
    others = [
        copy.deepcopy(student),
        pickle.loads(pickle.dumps(student)),
        torch.load(stream, weights_only=False),
        binarize.load(tmp_path / "net.safetensors", model=net).eval(),
        *(packed, packed.network, pickle.loads(pickle.dumps(packed))),
    ]
    with torch.no_grad():
        for given in calls:
            wanted = student(X, **given)
            for other in others:
                found = other(X, **given)
                assert type(found) is type(wanted)
                torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("cls", "calls"), CASES[:1])
def test_one_graph_for_every_way(cls: type[Plain], calls: list[dict[str, Any]]) -> None:
    student = binarize.convert(variant(cls, True, F.relu), example_inputs=X).eval()
    compiled = torch.compile(student, backend="eager", fullgraph=True)
    with torch.no_grad():
        for given in calls:
            torch.testing.assert_close(compiled(X, **given), student(X, **given))


@pytest.mark.parametrize("cls", [cls for cls, _ in CASES if cls is not Early])
def test_flags_of_parts(cls: type[Plain]) -> None:
    plan = binarize.plan(Part(cls), example_inputs=X)
    assert not plan.opaque
    assert decisions(plan) == decisions(binarize.plan(Part(Plain), example_inputs=X))
    student = binarize.convert(Part(cls), example_inputs=X)
    with torch.no_grad():
        assert student(X).shape == (2, 2, 12, 12)


@pytest.mark.parametrize(("residual", "act"), STYLES)
@pytest.mark.parametrize("name", ["wide", "A"])
def test_what_follows_another_layer_stays_as_it_is(name: str, residual: bool, act: Any) -> None:
    net = Wider(name, residual, act)
    student = binarize.convert(net, example_inputs=X).train()
    assert prelus(student) == 2
    for wide in (False, True):
        assert student(X, wide).shape == (2, 2, 12, 12)
        assert student(X, wide=wide).isfinite().all()


class Ignores(Plain):
    def forward(self, x: Tensor, feats: bool = False) -> Any:
        return self.head(self.body(x))


class Passes(Plain):
    """Calls a part with a flag that has no effect there."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Ignores()

    def forward(self, x: Tensor, feats: bool = False) -> Any:
        return self.part(x, feats)


@pytest.mark.parametrize("cls", [Ignores, Passes])
def test_a_flag_without_effect_takes_any_value(cls: Any) -> None:
    student = binarize.convert(cls(), example_inputs=X).eval()
    assert {"replace", "drop"} <= {d.action for d in student.binarize_plan.decisions}
    with torch.no_grad():
        for feats in (True, None, "none", 7):
            assert torch.equal(student(X, feats), student(X))


def test_the_example_chooses() -> None:
    net = variant(Flag, True, F.relu)
    plan = binarize.plan(net, example_inputs=(X, True))
    assert not plan.opaque
    student = binarize.convert(net, example_inputs=(X, True)).eval()
    assert isinstance(student(X, True), tuple)
    assert isinstance(student(X), Tensor)
    masked = binarize.convert(variant(Optional, True, F.relu), example_inputs=(X, MASK)).eval()
    other = binarize.convert(variant(Optional, True, F.relu), example_inputs=X).eval()
    other.load_state_dict(masked.state_dict())
    for given in ((X,), (X, MASK)):
        assert_same(masked(*given), other(*given))


class Counts(Plain):
    def forward(self, x: Tensor, mask: Tensor | None = None, level: int = 0) -> Any:
        f = self.body(x)
        if mask is not None and mask.mean() > 0:
            f = f * mask
        return f if level == 1 else self.head(f)


def test_what_cannot_be_is_refused_by_name(told: Any) -> None:
    student = binarize.convert(variant(Counts, True, F.relu), example_inputs=X).eval()
    assert not student.binarize_plan.opaque
    assert student(X, level=1).shape == (2, 8, 12, 12)
    with pytest.raises(ModelError, match="test_flags.py") as error:
        student(X, MASK)
    assert told(error.value).startswith("mask=")
    with pytest.raises(BinarizeError) as error:
        student(X, level=77)
    assert told(error.value).startswith("level=77: ")
    assert student(X).shape == (2, 2, 12, 12)


class Asks(Plain):
    def forward(self, x: Tensor) -> Any:
        f = self.body(x)
        return self.head(f if f.sum() > 1e9 else f + f)


def test_causes_name_the_line() -> None:
    plan = binarize.plan(variant(Asks, True, F.relu), example_inputs=X)
    opaque = plan.opaque
    assert "test_flags.py:" in opaque[""]
    assert "f.sum()" in opaque[""]
    assert f"  not traced (root): {opaque['']}" in str(plan).splitlines()


class Differs(nn.Module):
    """Its second call does another thing than its first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.calls = conv(8, 8), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.relu(self.a(x) + x) if self.calls % 2 else self.a(x) + x


class Caller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.head = conv(3, 8), Differs(), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.part(F.relu(self.stem(x)))))


def test_causes_of_calls_that_differ_name_the_forward() -> None:
    plan = binarize.plan(Caller(), example_inputs=X)
    opaque = plan.opaque
    assert f"  not traced part: {opaque['part']}" in str(plan).splitlines()
    assert "test_flags.py:" in opaque["part"]
    assert "forward of Differs" in opaque["part"]
