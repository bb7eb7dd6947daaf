"""Run a converted network and its float network side by side, up to where something is fitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from binarize.calibration.inputs import Inputs
from binarize.calibration.pairs import Pair, other_teacher
from binarize.graph.watch import Spot, Stop, watch

__all__ = ["Call", "Runs"]


@dataclass
class Call:
    """One call of a part of the network.

    Attributes:
        channels_last: Whether channels are the last dimension, not dimension 1.
        value: The float network's value.
        input: Its input.
        norm_input: Input of its norm.
        carried: What its bypass adds, ``None`` for nothing.
    """

    channels_last: bool
    value: Tensor
    input: Any = None
    norm_input: Any = None
    carried: Tensor | None = None

    def wanted(self) -> Tensor:
        """Return the value without what the bypass adds."""
        return self.value if self.carried is None else self.value - self.carried.view_as(self.value)

    def rows(self, x: Tensor) -> Tensor:
        """Return a feature map as (P, C)."""
        x = x if self.channels_last or x.ndim < 3 else x.movedim(1, -1)
        return x.reshape(-1, x.shape[-1])


class Runs:
    """Both networks, and what they are run on.

    Args:
        student: The converted network.
        teacher: The float network.
        batches: Inputs; at least one.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, batches: Sequence[Inputs]) -> None:
        self._student, self._teacher = student, teacher
        self._batches = batches

    @property
    def example(self) -> Inputs:
        """The first inputs, as the teacher takes them."""
        return _as_taken(self._batches[0], self._teacher)

    def forward(self) -> None:
        """Run the student on all batches."""
        for batch in self._batches:
            args, kwargs = _as_taken(batch, self._student)
            self._student(*args, **kwargs)

    def calls(self, pair: Pair) -> Iterator[Call]:
        """Run both networks on all batches up to a part, and yield its calls."""
        for batch in self._batches:
            values = self._values(pair, batch)
            yield from self._calls(pair, batch, values)

    def _values(self, pair: Pair, batch: Inputs) -> list[Tensor]:
        """Return the teacher's values for each call."""
        missing = {at for target in pair.targets for at in target.spots}
        readers = {at: target for target in pair.targets for at in target.spots}
        seen: dict[Spot, Tensor] = {}

        def see(at: Spot, operands: Any, result: Tensor) -> None:
            if at in missing:
                seen[at] = readers[at].read(at, operands, result)
                missing.remove(at)
                if not missing:
                    raise Stop

        args, kwargs = _as_taken(batch, self._teacher)
        watch(self._teacher, args, kwargs, see)
        if missing:
            raise other_teacher(
                pair.name, "on one of the batches it goes another way than on the first"
            )
        return [target.combine(seen) for target in pair.targets]

    def _calls(self, pair: Pair, batch: Inputs, values: list[Tensor]) -> list[Call]:
        """Run the student, and return what it had at each call."""
        like = next(self._student.parameters())
        last = _channels_last(pair)
        calls = [Call(last, value.to(device=like.device, dtype=like.dtype)) for value in values]
        at = -1

        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal at
            at += 1
            if at < len(calls):
                given = args[0] if args else next(iter(kwargs.values()))
                calls[at].input = given.detach().clone()

        def before_norm(module: nn.Module, args: Any) -> None:
            if at < len(calls):
                calls[at].norm_input = args[0].detach().clone()

        def before_inner(module: nn.Module, args: Any) -> None:
            if at < len(calls):
                calls[at].input = args[0].detach().clone()

        def carry(module: nn.Module, args: Any, result: Tensor) -> None:
            if at < len(calls):
                calls[at].carried = result.detach().clone()

        def leave(module: nn.Module, args: Any, result: Any) -> None:
            if at == len(calls) - 1:
                raise Stop

        module = pair.module
        hooks = [
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave),
        ]
        if pair.kind in ("unit", "inner"):
            hooks.append(module.norm.register_forward_pre_hook(before_norm))
            if module.bypass is not None:
                hooks.append(module.bypass.register_forward_hook(carry))
        if pair.kind == "inner":
            hooks.append(module.inner.register_forward_pre_hook(before_inner))
        args, kwargs = _as_taken(batch, self._student)
        with _removed(hooks):
            try:
                self._student(*args, **kwargs)
            except Stop:
                pass
        if at != len(calls) - 1:
            raise other_teacher(pair.name, f"calls this {len(calls)} times, the student {at + 1}")
        for call in calls:
            if pair.kind == "norm":
                call.norm_input = call.input
            produced = call.norm_input if pair.kind != "activation" else call.input
            if call.value.numel() != produced.numel():
                raise other_teacher(
                    pair.name,
                    f"its value has shape {tuple(call.value.shape)}, the student's "
                    f"{tuple(produced.shape)}",
                )
        return calls


def _channels_last(pair: Pair) -> bool:
    if pair.kind in ("unit", "inner"):
        return isinstance(pair.module, nn.Linear)
    return getattr(pair.module, "channel_dim", 1) == -1


@contextmanager
def _removed(hooks: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _as_taken(batch: Inputs, network: nn.Module) -> Inputs:
    """Return inputs on a network's device and in its dtype."""
    like = next(p for p in network.parameters() if p.is_floating_point())

    def take(x: Tensor) -> Tensor:
        return x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)

    moved: Inputs = tree_map_only(torch.Tensor, take, batch)
    return moved
