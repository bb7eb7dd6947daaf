"""Planning, reporting and packing leave nothing in the caches of a network's code."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

import binarize
from binarize.graph.shapes_only import ShapesOnly

X = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))
GLOBAL: dict[Any, Any] = {}
LISTED: list[Any] = [None]
TABLE: Any = None
OTHER = types.ModuleType("module_with_a_cache")
sys.modules[OTHER.__name__] = OTHER
exec("grid = None\nby_size = {}", vars(OTHER))


def make(like: Tensor, how: str = "linspace") -> Tensor:
    """A grid (1, H, W, 2) for the size of a feature map, written in several styles."""
    h, w = like.shape[-2:]
    if how == "linspace":
        ys, xs = torch.linspace(-1, 1, h), torch.linspace(-1, 1, w)
        return torch.stack(torch.meshgrid(ys, xs, indexing="ij"), -1).flip(-1)[None]
    if how == "cumsum":
        ones = torch.ones_like(like[:1, :1])
        grid = torch.cat([ones.cumsum(3) / w, ones.cumsum(2) / h], 1) * 2 - 1
        return grid.permute(0, 2, 3, 1).type_as(like)
    if how == "new":
        grid = like.new_zeros(1, h, w, 2)
        grid[..., 0] = torch.arange(w, device=like.device) * 2 / w - 1
        grid[..., 1].copy_(like.new_tensor(range(h))[:, None] * 2 / h - 1)
        return grid
    return F.affine_grid(torch.eye(2, 3, dtype=like.dtype)[None], [1, 1, h, w], False)


@functools.lru_cache(4)
def cached(h: int, w: int) -> Tensor:
    return make(torch.empty(1, 1, h, w))


@functools.cache
def cached_by_device(h: int, w: int, device: Any, dtype: Any) -> tuple[Tensor, Tensor]:
    return torch.arange(h, device=device, dtype=dtype), make(torch.empty(1, 1, h, w))


def closure() -> Callable[[Tensor], Tensor]:
    kept = None

    def get(like: Tensor) -> Tensor:
        nonlocal kept
        if kept is None:
            kept = make(like)
        return kept

    return get


kept_in_closure = closure()


def by_default(like: Tensor, cache: dict[Any, Tensor] = {}) -> Tensor:  # noqa: B006
    return cache.setdefault(like.shape[-2:], make(like))


def as_attribute(like: Tensor) -> Tensor:
    if not hasattr(as_attribute, "grid"):
        as_attribute.grid = make(like)  # type: ignore[attr-defined]
    return as_attribute.grid  # type: ignore[attr-defined, no-any-return]


class Holder:
    grid: Any = None

    def __deepcopy__(self, memo: Any) -> Holder:
        return self

    def get(self, like: Tensor) -> Tensor:
        if self.grid is None:
            self.grid = make(like)
        return self.grid  # type: ignore[no-any-return]


class Net(nn.Module):
    shared: Any = None
    by_size: dict[Any, Any] = {}  # noqa: RUF012

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.holder = Holder()
        self.stem, self.a, self.b = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))
        self.head = nn.Conv2d(8, 2, 1)
        self.register_buffer("base", torch.linspace(0.5, 1, 2))

    def grid(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        kind, _, way = self.how.partition(":")
        if kind == "global":
            return GLOBAL.setdefault((h, w), make(x, way or "linspace"))  # type: ignore[no-any-return]
        if kind == "buffer":
            return GLOBAL.setdefault("b", make(x) * self.base)  # type: ignore[no-any-return]
        if kind == "nested":
            GLOBAL.setdefault("maps", {}).setdefault(x.device, []).append((make(x), h))
            return GLOBAL["maps"][x.device][0][0]  # type: ignore[no-any-return]
        if kind == "list":
            LISTED[0] = make(x) if LISTED[0] is None else LISTED[0]
            return LISTED[0]  # type: ignore[no-any-return]
        if kind == "variable":
            global TABLE
            TABLE = make(x) if TABLE is None else TABLE
            return TABLE  # type: ignore[no-any-return]
        if kind == "module":
            OTHER.grid = make(x) if OTHER.grid is None else OTHER.grid
            return OTHER.grid  # type: ignore[no-any-return]
        if kind == "class":
            if Net.shared is None:
                type(self).shared = make(x)
            return self.shared  # type: ignore[no-any-return]
        if kind == "class dict":
            return self.by_size.setdefault(h, make(x))  # type: ignore[no-any-return]
        if kind == "holder":
            return self.holder.get(x)
        if kind == "lru":
            return cached(int(h), int(w))
        if kind == "lru tuple":
            return cached_by_device(int(h), int(w), x.device, x.dtype)[1]
        ways = {"closure": kept_in_closure, "default": by_default, "function": as_attribute}
        return ways[kind](x)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(F.relu(self.stem(x))))
        x = F.grid_sample(x, self.grid(x).expand(len(x), -1, -1, -1), align_corners=True)
        return self.head(F.relu(self.b(x)))


HOWS = (
    *("global", "global:cumsum", "global:new", "global:affine", "buffer", "nested", "list"),
    *("variable", "module", "class", "class dict", "holder", "lru", "lru tuple", "closure"),
    *("default", "function"),
)


def clear() -> None:
    global TABLE
    GLOBAL.clear()
    LISTED[0] = TABLE = OTHER.grid = Net.shared = None  # type: ignore[attr-defined]
    Net.by_size.clear()
    cached.cache_clear()
    cached_by_device.cache_clear()
    by_default.__defaults__[0].clear()  # type: ignore[index]
    vars(as_attribute).clear()
    cell: Any = kept_in_closure.__closure__
    cell[0].cell_contents = None


def network(how: str) -> Net:
    torch.manual_seed(0)
    return Net(how).eval()


@pytest.fixture(autouse=True)
def _clean() -> Any:
    clear()
    yield
    clear()


def value(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        y = model(x)
    assert type(y) is Tensor
    return y


@pytest.mark.parametrize("how", HOWS)
def test_caches_of_grids_keep_values(how: str) -> None:
    expected = value(network(how))
    clear()
    teacher = network(how)
    binarize.plan(teacher, example_inputs=X)
    assert torch.equal(value(teacher), expected)
    clear()
    student = binarize.convert(teacher, example_inputs=X)
    assert torch.equal(value(teacher), expected)
    binarized = value(student.eval())
    clear()
    binarize.report(student, X)
    assert torch.equal(value(student), binarized)
    assert torch.equal(value(teacher), expected)
    clear()
    packed = binarize.pack(student)
    for _ in range(2):
        torch.testing.assert_close(value(packed), binarized)
    assert packed.unfused is None
    assert torch.equal(value(teacher), expected)


class Remembers(nn.Module):
    """A network that keeps what depends on the image, and reads it in the next call."""

    last: Any = None
    seen: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem, self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(F.relu(self.stem(x))))
        if self.way == "class":
            Remembers.last = x
        if self.way == "dict":
            self.seen["x"] = (x, [x])
        if self.way == "list":
            LISTED.append({"x": x})
        if self.way == "weight":
            GLOBAL["w"] = self.stem.weight.abs().mean()
        if self.way == "lru":
            _size(x)
        return self.head(x)


@functools.lru_cache
def _size(x: Tensor) -> int:
    return int(x.shape[0])


@pytest.mark.parametrize("way", ["class", "dict", "list", "weight", "lru", "hook"])
@pytest.mark.parametrize("earlier", [False, True])
def test_what_depends_on_the_image_is_taken_away(way: str, earlier: bool) -> None:
    torch.manual_seed(0)
    teacher = Remembers(way).eval()
    features: list[Any] = []
    if way == "hook":
        teacher.a.register_forward_hook(lambda _m, _a, y: features.append(y))
    if earlier:
        value(teacher)
    student = binarize.convert(teacher, example_inputs=X)
    value(binarize.pack(student.eval()))
    held = [Remembers.last, *Remembers.seen.values(), *LISTED, *GLOBAL.values(), *features]
    leaves, _ = torch.utils._pytree.tree_flatten(held)
    assert not any(isinstance(leaf, FakeTensor) for leaf in leaves)
    if way == "class":
        assert (Remembers.last is not None) == earlier
    if way == "lru":
        assert _size.cache_info().currsize <= 2
        _size.cache_clear()
    Remembers.last = None
    Remembers.seen.clear()
    del LISTED[1:]


class Noise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.stem, self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.calls.view(1)[:1].add_(1)
        noise = torch.randn(1, 8, 1, 1) + torch.rand_like(x[:, :1, :1, :1])
        return self.head(F.relu(self.a(F.relu(self.stem(x)) + noise)))


def test_buffers_and_random_numbers_stay() -> None:
    teacher = Noise()
    state = torch.get_rng_state()
    binarize.plan(teacher, example_inputs=X)
    assert teacher.calls.item() == 0
    assert torch.equal(torch.get_rng_state(), state)


class AsksValues(nn.Module):
    """A way through the forward that a value tells, which no image has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.tensor(2))
        self.stem, self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(int(self.steps) + int(torch.arange(3).max())):
            x = F.relu(F.pad(self.a(x), (1, 1, 1, 1)))
        return self.head(x)


def test_values_of_buffers_are_known() -> None:
    student = binarize.convert(AsksValues(), example_inputs=X).eval()
    packed = binarize.pack(student)
    torch.testing.assert_close(value(packed), value(student))
    assert packed.unfused is None


class Pads(nn.Module):
    """Operators whose shapes torch finds by other operators that make new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(F.relu(self.stem(x)), (1, 2, 1, 2), mode="reflect")
        x = F.pad(F.max_pool2d(x, 2), (1, 1, 1, 1), mode="replicate") + x.new_empty(1).fill_(2)
        return self.head(F.relu(self.a(F.pad(x, (1, 1, 1, 1), mode="circular"))))


@pytest.mark.filterwarnings("ignore::binarize.errors.SlowWarning")  # some are no programs
def test_what_depends_on_the_image_is_no_constant() -> None:
    student = binarize.convert(Pads(), example_inputs=X).eval()
    packed = binarize.pack(student, example_inputs=X)
    torch.testing.assert_close(value(packed, X + 1), value(student, X + 1))


def test_only_small_tensors_like_an_unknown_one_have_values() -> None:
    with ShapesOnly() as mode:
        image = mode.stand_in(torch.zeros(1, 3, 8, 8))
        small, large = image.new_zeros(2, 3), image.new_zeros(2**12, 2**11)
        assert not isinstance(small, FakeTensor)
        assert isinstance(large, FakeTensor)
    assert torch.equal(small, torch.zeros(2, 3))
    assert large.shape == (2**12, 2**11)
