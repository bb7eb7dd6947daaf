"""Run a network on real values and look at the results of its operations."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from binarize.graph.recorder import Op, Recorder

__all__ = ["Spot", "Stop", "spot", "watch"]


class Spot(NamedTuple):
    """An operation by its place in the code, which every run of a network has in common.

    Attributes:
        scope: As in :class:`~binarize.graph.recorder.Op`.
        what: Dotted path of a module, kind of a function.
        ordinal: As there.
        call: As there.
    """

    scope: str
    what: str
    ordinal: int
    call: int


class Stop(BaseException):
    """Ends a run early; no error, so that no network takes it for one."""


def spot(op: Op) -> Spot:
    """Return the place of an operation."""
    return Spot(op.scope, op.path or op.kind, op.ordinal, op.call)


class _Watcher(Recorder):
    """A recorder that shows operands and result of every operation as soon as it is done."""

    def __init__(self, model: nn.Module, see: Callable[[Spot, Any, Tensor], None]) -> None:
        super().__init__(model, None)
        self._see = see
        self._thread = threading.get_ident()

    # Other runs of the network may wait meanwhile, each in a thread of its own.

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == self._thread:
            super()._enter(module, args, kwargs)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if threading.get_ident() == self._thread:
            super()._leave(module, args, kwargs, output)

    def _add(
        self,
        kind: str,
        name: str,
        count: Any,
        operands: Any,
        output: Any,
        path: str | None,
        *rest: Any,
        **more: Any,
    ) -> None:
        index = len(self.ops)
        super()._add(kind, name, count, operands, output, path, *rest, **more)
        self.arguments.clear()  # they would keep feature maps alive
        if len(self.ops) > index:
            result = next((x for x in tree_iter(output) if isinstance(x, Tensor)), None)
            if result is not None:
                self._see(spot(self.ops[index]), operands, result)


@torch.no_grad()
def watch(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    see: Callable[[Spot, Any, Tensor], None],
) -> None:
    """Run a network as it is, and show its operations.

    Args:
        model: The network.
        args: Positional arguments.
        kwargs: Named arguments.
        see: Called with place, operands and first result of every operation. What it is shown may
            be overwritten later in the run. It ends the run by raising :class:`Stop`.
    """
    recorder = _Watcher(model, see)
    try:
        with recorder.hooked():
            recorder.add_inputs((tuple(args), dict(kwargs)))
            with recorder:
                model(*args, **kwargs)
    except Stop:
        pass
