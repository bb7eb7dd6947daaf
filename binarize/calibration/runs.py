"""Forward passes of a converted network and its float network, which wait where one is fitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from binarize.calibration.inputs import Inputs
from binarize.calibration.pairs import Pair, Reading, other_teacher
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

    Each pass goes through the network once, whatever the number of layers, except that those of the
    student start over behind a module that is called several times: what came between its calls has
    to be computed anew.

    Args:
        student: The converted network.
        teacher: The float network.
        batches: Inputs; at least one.
        pairs: What will be fitted, in this order.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: Sequence[Inputs],
        pairs: Sequence[Pair],
    ) -> None:
        self._student, self._batches = student, batches
        self._like = next(p for p in student.parameters() if p.is_floating_point())
        self._uses = Counter(
            reading for pair in pairs for target in pair.targets for reading in target.readings
        )
        self._teachers = [_Teacher(teacher, batch, self._uses) for batch in batches]
        self._walks: list[Walk] = []
        self._start()

    def _start(self) -> None:
        self._walks = [Walk(self._forward(batch)) for batch in self._batches]

    def _forward(self, batch: Inputs) -> Any:
        def run(walk: Walk) -> None:
            args, kwargs = as_taken(batch, self._student)
            self._student(*args, **kwargs)

        return run

    def calls(self, pair: Pair) -> Iterator[Call]:
        """Go on to a part, and yield its calls on all batches before it computes anything.

        Args:
            pair: The part; all passes go on when the next one is asked for.
        """
        module = pair.module

        def pause(module: nn.Module, args: Any, kwargs: Any) -> None:
            walk = Walk.current()
            if walk is not None:
                walk.pause(Call(pair.name, module, args, kwargs))

        hook = module.register_forward_pre_hook(pause, with_kwargs=True)
        with _removed([hook]):
            for number, teacher in enumerate(self._teachers):
                values = teacher.values(pair)
                for index in range(pair.calls):
                    call = self._walks[number].next()
                    if call is None:
                        raise other_teacher(
                            pair.name, f"calls this {pair.calls} times, the student {index}"
                        )
                    if values:
                        call.value = values[index].to(self._like.device, self._like.dtype)
                        if pair.kind != "unit":
                            call.check(call.input)
                    yield call
        self._forget(pair)
        if pair.calls > 1:
            self._close_walks()
            self._start()

    def _forget(self, pair: Pair) -> None:
        """Drop the values that nothing else has to match."""
        for target in pair.targets:
            for reading in target.readings:
                self._uses[reading] -= 1
                if not self._uses[reading]:
                    for teacher in self._teachers:
                        teacher.seen.pop(reading, None)

    def _close_walks(self) -> None:
        for walk in self._walks:
            walk.close()

    def close(self) -> None:
        """End all passes."""
        self._close_walks()
        for teacher in self._teachers:
            teacher.walk.close()


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

    def values(self, pair: Pair) -> list[Tensor]:
        """Go on until all values of a part are there."""
        missing = {reading for target in pair.targets for reading in target.readings}
        while not missing <= self.seen.keys():
            if self.walk.next() is None:
                raise other_teacher(
                    pair.name, "on one of the batches it goes another way than on the first"
                )
        return [target.combine(self.seen) for target in pair.targets]


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
