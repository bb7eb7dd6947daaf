"""Forward passes of a converted network and its float network, which wait where one is fitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from binarize.calibration.inputs import Inputs
from binarize.calibration.pairs import Pair, Reading, Target, other_teacher
from binarize.calibration.walk import Walk
from binarize.graph.watch import Spot, watch

__all__ = ["Call", "Inside", "Runs", "as_taken"]


@dataclass
class Inside:
    """What happens inside a binary layer.

    Attributes:
        sums: Input of its norm.
        inner: Input of its inner activation, ``None`` without one.
        carried: What its bypass adds, ``None`` without one.
    """

    sums: Any = None
    inner: Any = None
    carried: Any = None


@dataclass
class Call:
    """A call of a module, which has yet to compute.

    Attributes:
        name: Name of the module.
        module: The module.
        args: Its positional arguments, the feature map first.
        kwargs: Its named arguments.
        value: The float network's value; ``None`` for ranges.
    """

    name: str
    module: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    value: Any = None

    @property
    def input(self) -> Tensor:
        """The feature map."""
        given: Tensor = self.args[0] if self.args else next(iter(self.kwargs.values()))
        return given

    def kept(self) -> Call:
        """Return a copy that the network does not overwrite when it goes on."""
        args, kwargs = tree_map_only(Tensor, torch.clone, (self.args, self.kwargs))
        return replace(self, args=args, kwargs=kwargs)

    def inside(self) -> Inside:
        """Run a binary layer as it is now, and return what happens inside."""
        unit, seen = self.module, Inside()
        hooks = [unit.norm.register_forward_pre_hook(_noting(seen, "sums"))]
        if unit.inner is not None:
            hooks.append(unit.inner.register_forward_pre_hook(_noting(seen, "inner")))
        if unit.bypass is not None:
            hooks.append(unit.bypass.register_forward_hook(_noting(seen, "carried")))
        with _removed(hooks):
            made = unit.forward(*self.args, **self.kwargs)
        self.check(made)
        return seen

    def check(self, made: Tensor) -> None:
        """Reject a value that the module's result, or another tensor of its shape, is not like.

        Raises:
            ModelError: Their shapes differ.
        """
        ours, theirs = tuple(made.shape), tuple(self.value.shape)
        if ours != theirs:
            raise other_teacher(self.name, f"its value has shape {theirs}, the student's {ours}")

    def wanted(self, inside: Inside) -> Tensor:
        """Return what a binary layer should give without its bypass."""
        value: Tensor = self.value
        return value if inside.carried is None else value - inside.carried.view_as(value)

    def rows(self, x: Tensor) -> Tensor:
        """Return a feature map as (positions, channels)."""
        dim = -1 if isinstance(self.module, nn.Linear) else getattr(self.module, "channel_dim", 1)
        return (x if dim == -1 or x.ndim < 3 else x.movedim(1, -1)).flatten(0, -2)


class Runs:
    """Both networks, a forward pass of each for every batch, and where they wait.

    Args:
        student: The converted network.
        teacher: The float network.
        batches: Inputs; at least one.
        pairs: What will be fitted.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: Sequence[Inputs],
        pairs: Sequence[Pair],
    ) -> None:
        self._like = next(p for p in student.parameters() if p.is_floating_point())
        self._uses = Counter(
            reading for pair in pairs for target in pair.targets for reading in target.readings
        )
        self._teachers = [_Teacher(teacher, batch, self._uses) for batch in batches]

        def forward(batch: Inputs) -> Walk:
            args, kwargs = as_taken(batch, student)
            return Walk(lambda walk: student(*args, **kwargs))

        self._students = [forward(batch) for batch in batches]

    def calls(self, pair: Pair, index: int) -> list[Call]:
        """Go on to a call of a part, on all batches, before it computes anything.

        Args:
            pair: The part.
            index: Number of the call.

        Returns:
            A call per batch. The passes go on when this is called again.
        """
        found = []

        def pause(module: nn.Module, args: Any, kwargs: Any) -> None:
            walk = Walk.current()
            if walk is not None:
                walk.pause(Call(pair.name, module, args, kwargs))

        with _removed([pair.module.register_forward_pre_hook(pause, with_kwargs=True)]):
            for student, teacher in zip(self._students, self._teachers, strict=True):
                call = student.next()
                if call is None:
                    raise other_teacher(
                        pair.name,
                        f"calls this {len(pair.orders)} times, the student {index}",
                    )
                if pair.targets:
                    value = teacher.value(pair.name, pair.targets[index])
                    call.value = value.to(self._like.device, self._like.dtype)
                    if pair.kind != "unit":
                        call.check(call.input)
                found.append(call)
        self._forget(pair, index)
        return found

    def _forget(self, pair: Pair, index: int) -> None:
        """Drop the values that nothing else has to match."""
        for reading in pair.targets[index].readings if pair.targets else ():
            self._uses[reading] -= 1
            if not self._uses[reading]:
                for teacher in self._teachers:
                    teacher.seen.pop(reading, None)

    def close(self) -> None:
        """End all passes."""
        for walk in (*self._students, *(teacher.walk for teacher in self._teachers)):
            walk.close()


class _Teacher:
    """A forward pass of the float network, and what it has shown and is still to be matched."""

    def __init__(self, teacher: nn.Module, batch: Inputs, uses: Counter[Reading]) -> None:
        self.seen: dict[Reading, Tensor] = {}
        readings: dict[Spot, list[Reading]] = {}
        for reading in uses:
            readings.setdefault(reading.spot, []).append(reading)

        def run(walk: Walk) -> None:
            def see(at: Spot, operands: Any, result: Tensor) -> None:
                for reading in readings.get(at, ()):
                    if uses[reading]:
                        self.seen[reading] = reading.read(operands, result)
                        walk.pause(at)

            args, kwargs = as_taken(batch, teacher)
            watch(teacher, args, kwargs, see)

        self.walk = Walk(run)

    def value(self, name: str, target: Target) -> Tensor:
        """Go on until a value is there."""
        while not self.seen.keys() >= set(target.readings):
            if self.walk.next() is None:
                raise other_teacher(
                    name, "on one of the batches it goes another way than on the first"
                )
        return target.combine(self.seen)


def _noting(seen: Inside, name: str) -> Any:
    """A hook that keeps the input of a module, or its output."""

    def hook(module: nn.Module, args: Any, *output: Any) -> None:
        setattr(seen, name, output[0] if output else args[0])

    return hook


@contextmanager
def _removed(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def as_taken(batch: Inputs, network: nn.Module) -> Inputs:
    """Return inputs on a network's device and in its dtype."""
    like = next(p for p in network.parameters() if p.is_floating_point())

    def take(x: Tensor) -> Tensor:
        return x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)

    moved: Inputs = tree_map_only(torch.Tensor, take, batch)
    return moved
