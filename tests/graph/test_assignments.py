"""Feature maps that are filled in parts depend on all of these parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import binarize
from binarize.graph.memory import Memory
from binarize.graph.trace import trace

X = torch.zeros(2, 3, 8, 12)
Fill = Callable[[Tensor, Tensor], Tensor]


def volume(f: Tensor) -> Tensor:
    return torch.zeros(f.shape[0], 16, *f.shape[2:])


def _halves(write: Callable[[Tensor, Tensor], object]) -> Fill:
    def fill(v: Tensor, f: Tensor) -> Tensor:
        write(v[:, :8], f)
        write(v.narrow(1, 8, 8), f)
        return v

    return fill


def _assign(v: Tensor, f: Tensor) -> Tensor:
    v[:, :8] = f
    v[:, 8:] = f
    return v


def _by_index(v: Tensor, f: Tensor) -> Tensor:
    v[:, torch.arange(8)] = f
    v.index_copy_(1, torch.arange(8, 16), f)
    return v


def _shifted(v: Tensor, f: Tensor) -> Tensor:
    for i in range(3):
        v[:, :8, :, i:] = f[..., : f.shape[-1] - i]
        v[:, 8:, :, i:] += f[..., : f.shape[-1] - i]
    return v


def _channels(v: Tensor, f: Tensor) -> Tensor:
    for i in range(16):
        v.select(1, i).copy_(f[:, i % 8])
    return v


def _scatter(v: Tensor, f: Tensor) -> Tensor:
    index = torch.arange(8).view(1, 8, 1, 1).expand_as(f)
    return v.scatter_(1, index, f).scatter_add_(1, index + 8, f)


def _masked(v: Tensor, f: Tensor) -> Tensor:
    mask = torch.ones_like(v, dtype=torch.bool)
    return v.masked_scatter_(mask, torch.cat([f, f], 1))


def _out(v: Tensor, f: Tensor) -> Tensor:
    torch.mul(f, 2, out=v[:, :8])
    torch.cat([f], 1, out=v[:, 8:])
    return v


def _view_kept(v: Tensor, f: Tensor) -> Tensor:
    flat = v.view(v.shape[0], 2, 8, *v.shape[2:])
    flat[:, 0] = f
    flat.unbind(1)[1].copy_(f)
    return v


def _put(v: Tensor, f: Tensor) -> Tensor:
    rows = torch.arange(len(f))
    for i in range(16):
        v.index_put_((rows, torch.full_like(rows, i)), f[:, i % 8])
    return v


def _functional(v: Tensor, f: Tensor) -> Tensor:
    return v.slice_scatter(f, 1, 0, 8).slice_scatter(f, 1, 8, 16)


FILLS: dict[str, Fill] = {
    "assign": _assign,
    "copy": _halves(lambda part, f: part.copy_(f)),
    "add": _halves(lambda part, f: part.add_(f)),
    "sub": _halves(lambda part, f: part.sub_(f)),
    "set data": _halves(lambda part, f: part.data.copy_(f)),
    "index": _by_index,
    "shifted": _shifted,
    "channels": _channels,
    "scatter": _scatter,
    "masked": _masked,
    "out": _out,
    "view": _view_kept,
    "put": _put,
    "functional": _functional,
}
BASES: dict[str, Callable[[Tensor], Tensor]] = {
    "zeros": volume,
    "new": lambda f: f.new_zeros(f.shape[0], 16, *f.shape[2:]),
    "like": lambda f: torch.zeros_like(torch.empty(f.shape[0], 16, *f.shape[2:])),
    "computed": lambda f: torch.cat([f, f], 1),
}


class Net(nn.Module):
    def __init__(self, base: str, fill: str) -> None:
        super().__init__()
        self.base, self.fill = base, fill
        sizes = ((3, 8), (8, 8), (16, 16), (16, 16), (16, 2))
        self.stem, self.a, self.b, self.c, self.head = (nn.Conv2d(*s, 3, padding=1) for s in sizes)

    def forward(self, x: Tensor) -> Tensor:
        f = F.relu(self.a(F.relu(self.stem(x))))
        v = FILLS[self.fill](BASES[self.base](f), f)
        return self.head(F.relu(self.c(F.relu(self.b(v)))))


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("base", BASES)
def test_what_is_assigned_flows_on(base: str, fill: str) -> None:
    plan = binarize.plan(Net(base, fill), example_inputs=X)
    decided = {d.site: (d.action, d.roles) for d in plan.layers}
    for site in ("a", "b", "c"):
        assert decided[site] == ("binarize", ()), plan


@pytest.mark.parametrize("fill", FILLS)
def test_what_is_assigned_multiplies_nothing(fill: str) -> None:
    run = trace(Net("zeros", fill), (X,))
    assert {op.macs for op in run.ops if op.kind == "cat"} == {0}


def test_all_parts_count() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(i, 4, 1) for i in (3, 3, 8))

        def forward(self, x: Tensor) -> Tensor:
            v = torch.empty(len(x), 8, *x.shape[2:])
            v[:, :4] = self.a(x)
            v[:, 4:] = self.b(x)
            return self.c(v)

    run = trace(Parts(), (X,))
    seen, front = set(), [op.index for op in run.ops if op.path == "c"]
    while front:
        index = front.pop()
        seen.add(index)
        front += run.ops[index].inputs
    assert {"a", "b"} <= {run.ops[i].path for i in seen}
    assert [op.kind for op in run.ops if op.name == "setitem"] == ["cat", "cat"]


def test_what_gives_back_its_operand_writes_nothing() -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            first, second = x[:, :4], x[:, 4:]
            first = first.float().to(x.device)
            return self.b(second) + first

    run = trace(Same(), (X,))
    assert not any(op.kind == "cat" for op in run.ops)


def test_a_part_of_what_was_there_before_is_known_as_such() -> None:
    memory, canvas = Memory(None), torch.zeros(2, 4)
    part = canvas[:, :2]
    memory.see([canvas], [part])
    assert memory.whole(part) is canvas
    other = torch.zeros(3)
    assert memory.whole(other) is other
