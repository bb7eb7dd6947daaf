"""Tell layers that make an output of the network from those that make a returned feature map.

A network does not say which of the two it returns. A layer certainly makes an output if its
result leaves the network unchanged: no norm, activation, residual addition or further layer
reads it first. A residual addition of the network's own input (an image plus its correction) or
a frozen layer (an expectation over bins) changes nothing about that. Otherwise the number of
channels decides: outputs are narrower than any feature map, that is, than the first layer's.
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from binarize.graph.recorder import Op
from binarize.graph.shortcuts import Shortcut
from binarize.graph.trace import Trace

__all__ = ["LAYER_KINDS", "Ending", "Outputs", "ending_outputs"]

LAYER_KINDS = ("layer", "function-layer", "product")

# What may stand between a layer and an output.
_NORM, _ACTIVATION, _SHORTCUT, _FROZEN, _MERGE = 1, 2, 4, 8, 16
_DOUBTS = {_NORM: "a norm", _ACTIVATION: "an activation", _SHORTCUT: "a residual addition"}
# No feature map after a norm has this few channels: depth, optical flow, an image.
_FEW = 4


@dataclass(frozen=True)
class Ending:
    """What becomes of a layer's result.

    Attributes:
        makes_output: Whether it is an output of the network.
        guess: The evidence and how to override it, if this is a guess.
    """

    makes_output: bool
    guess: str = ""


class Outputs:
    """Classifies the layers of a run.

    Args:
        trace: The run.
        shortcuts: Additions that close a residual block, by index.
        calls: Calls of each layer, by path.
        before: Per operation, whether a layer comes before it.
        reads: Per operation, whether it depends on the network's input.
    """

    def __init__(
        self,
        trace: Trace,
        shortcuts: Mapping[int, Shortcut],
        calls: Mapping[str, list[Op]],
        before: list[bool],
        reads: list[bool],
    ) -> None:
        self._trace = trace
        outputs = [op for op in trace.ops if op.kind == "output"]
        self._vectors = all(len(op.shape) <= 2 for op in outputs)
        self._inner = {
            i
            for i, shortcut in shortcuts.items()
            if before[shortcut.fork] or trace.ops[shortcut.fork].kind in LAYER_KINDS
        }
        self._modules = {path: trace.model.get_submodule(path) for path in calls}
        self._open = _fixed(trace)
        self._after = self._followed(self._open), self._followed(set())
        self._width = self._first_width(calls, before, reads)
        self._back = _leaving(trace, self._open)

    def judge(self, path: str, calls: list[Op]) -> Ending:
        """Determine what becomes of a layer's result.

        Args:
            path: Its dotted name.
            calls: Its calls.
        """
        module = self._modules[path]
        frozen = _is_frozen(self._trace, module)
        followed = [self._after[frozen][op.index] for op in calls]
        found = {x for op in calls for x in self._barriers(op, set() if frozen else self._open)}
        if not found:
            return Ending(False)
        if not any(followed) and any(not mask & ~_MERGE for mask, _ in found):
            return Ending(True)
        name = glob.escape(path)
        accepted = [x for x in found if self._accepts(*x, module)]
        if accepted:
            mask, channels = min(accepted)
            why = f"its {channels} channel(s) are fewer than the first layer's {self._width}"
            if mask & _FROZEN:
                why = "only a frozen layer follows"
            elif channels >= self._width:
                why = "it narrows, has a bias and is returned unchanged"
            return Ending(True, f"{why}; if it makes features, overrides={{{name!r}: 'binarize'}}")
        doubt = min(mask for mask, _ in found)
        if doubt & _NORM or (not doubt & (_ACTIVATION | _SHORTCUT) and module.bias is None):
            return Ending(False)
        through = " and ".join(words for bit, words in _DOUBTS.items() if doubt & bit)
        through = f" through {through}" if through else " and read by further layers"
        guess = f"returned{through}, assumed to make features; if it makes an output, "
        return Ending(False, f"{guess}overrides={{{name!r}: 'keep'}}")

    def _accepts(self, mask: int, channels: int, module: nn.Module) -> bool:
        doubts = mask & (_NORM | _ACTIVATION | _SHORTCUT)
        if mask & _FROZEN:
            return not doubts
        if channels < self._width:
            return not mask & _NORM or channels <= _FEW
        # A prediction on the way (an auxiliary head whose result further layers read).
        wide, narrow = _widths(module)
        return not doubts and not mask & _MERGE and module.bias is not None and narrow < wide

    def _barriers(self, call: Op, fixed: set[int]) -> set[tuple[int, int]]:
        """Return what stands between a call and the outputs it reaches, and the channels there."""
        ops, consumers = self._trace.ops, self._trace.consumers
        start = (call.index, 0, _widths(self._modules[call.path or ""])[1])
        front, seen, found = [start], {start}, set()
        while front:
            index, mask, channels = front.pop()
            for consumer in consumers[index]:
                op = ops[consumer]
                if op.kind == "output":
                    found.add((mask, channels))
                    continue
                if not self._back[consumer] or (op.kind in LAYER_KINDS and consumer not in fixed):
                    continue
                bits = mask
                if op.kind in LAYER_KINDS:
                    bits |= _FROZEN
                elif op.kind == "norm":
                    bits |= _NORM
                elif op.kind == "activation" and not self._vectors:
                    bits |= _ACTIVATION
                elif consumer in self._inner:
                    bits |= _SHORTCUT
                elif op.kind in ("cat", "add"):
                    bits |= _MERGE
                step = (consumer, bits, _channels_behind(op, channels))
                if step not in seen:
                    seen.add(step)
                    front.append(step)
        return found

    def _followed(self, fixed: set[int]) -> list[bool]:
        found = [False] * len(self._trace.ops)
        for op in reversed(self._trace.ops):
            found[op.index] = any(
                found[i] or (self._trace.ops[i].kind in LAYER_KINDS and i not in fixed)
                for i in self._trace.consumers[op.index]
            )
        return found

    def _first_width(
        self, calls: Mapping[str, list[Op]], before: list[bool], reads: list[bool]
    ) -> int:
        """Return the width of the widest layer on the input that does not only mix colors."""
        first, widest = 0, 0
        for path, ops in calls.items():
            wide, own = _widths(self._modules[path])
            widest = max(widest, own)
            if own > wide and all(reads[op.index] and not before[op.index] for op in ops):
                first = max(first, own)
        return first or widest // 4


def _channels_behind(op: Op, channels: int) -> int:
    """Return the channels of a feature map after an operation that may change their number."""
    if op.name == "pixel_shuffle":
        return op.shape[1]
    if op.kind == "cat" and len(op.shape) == len(op.in_shape) > 3:
        # Along the channels, first or last; other concatenations keep their number.
        return next((op.shape[d] for d in (1, -1) if op.shape[d] != op.in_shape[d]), channels)
    return channels


def ending_outputs(trace: Trace, calls: Collection[Op]) -> list[Op]:
    """Find the operations between calls of output-making layers and the outputs.

    Args:
        trace: The run.
        calls: The calls of the layers.
    """
    back = _leaving(trace, _fixed(trace))
    found: set[int] = set()
    front = [op.index for op in calls]
    while front:
        for index in trace.consumers[front.pop()]:
            if back[index] and index not in found and trace.ops[index].kind != "output":
                found.add(index)
                front.append(index)
    return [trace.ops[index] for index in found]


def _leaving(trace: Trace, fixed: set[int]) -> list[bool]:
    """Return, per operation, whether no trainable layer lies on a path to an output, or is it."""
    found = [False] * len(trace.ops)
    for op in reversed(trace.ops):
        if op.kind not in LAYER_KINDS or op.index in fixed:
            ahead = any(found[i] for i in trace.consumers[op.index])
            found[op.index] = ahead or op.kind == "output"
    return found


def _fixed(trace: Trace) -> set[int]:
    """Return layer-like operations that use frozen weights or constants."""
    return {op.index for op in trace.ops if op.kind in LAYER_KINDS and _is_fixed(trace, op)}


def _is_fixed(trace: Trace, op: Op) -> bool:
    if op.kind == "layer":
        return _is_frozen(trace, trace.model.get_submodule(op.path or ""))
    if op.path is not None or len(op.inputs) != 1:
        return False
    own = trace.model.get_submodule(op.scope).parameters(recurse=False)
    return not any(p.requires_grad and id(p) in trace.direct for p in own)


def _is_frozen(trace: Trace, module: nn.Module) -> bool:
    """Check whether a layer is frozen in a network that trains other layers."""
    if any(p.requires_grad for p in module.parameters()):
        return False
    return any(p.requires_grad for p in trace.model.parameters())


def _widths(module: nn.Module) -> tuple[int, int]:
    """Return the input and output channels of a layer."""
    layer: Any = module
    if hasattr(layer, "out_channels"):
        return layer.in_channels, layer.out_channels
    return getattr(layer, "in_features", 0), getattr(layer, "out_features", 0)
