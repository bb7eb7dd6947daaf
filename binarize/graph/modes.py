"""A second run, in training mode, for networks that then take a different path.

A run in evaluation mode misses an auxiliary head that exists only in training mode, and a head
that then returns its raw values.
"""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from binarize.graph.classify import module_kind
from binarize.graph.trace import Trace, trace

__all__ = ["preserve_random_states", "training_run"]


def training_run(model: nn.Module, evaluated: Trace) -> Trace | None:
    """Run a network in training mode on another run's inputs, if its code checks the mode.

    Args:
        model: The network; its tensors, its modules and the random states stay unchanged.
        evaluated: Its run in evaluation mode.

    Returns:
        The run; ``None`` if no forward branches on the mode, or if the network does not run in
        training mode (because it expects targets, for example).
    """
    classes: set[type] = {type(module) for module in model.modules() if _has_parts(module)}
    if not any(_branches_on_mode(cls) for cls in classes):
        return None
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def zeros(like: Tensor) -> Tensor:
        # A trace on fake tensors keeps only shapes; real tensors are used as they are.
        return torch.zeros(like.shape, dtype=like.dtype, device=device) if like.is_meta else like

    args, kwargs = tree_map_only(Tensor, zeros, evaluated.arguments.get("", ((), {})))
    try:
        with preserve_random_states(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trace(model, args, kwargs, training=True)
    except Exception:
        return None


def _has_parts(module: nn.Module) -> bool:
    """Check whether a module could call layers; a drop-path branches on the mode but has none."""
    return module_kind(module) is None and any(True for _ in module.children())


@functools.lru_cache(maxsize=4096)
def _branches_on_mode(cls: type) -> bool:
    """Check whether a method of a class uses ``self.training`` other than as an argument."""
    own = itertools.takewhile(lambda base: base is not nn.Module, cls.__mro__)
    members = itertools.chain.from_iterable(
        vars(base).values() for base in own if not base.__module__.startswith("torch.nn.")
    )
    codes = (
        getattr(inspect.unwrap(getattr(member, "__func__", member)), "__code__", None)
        for member in members
    )
    return any(isinstance(code, CodeType) and _asks(code) for code in codes)


_DECIDING = ("POP_JUMP", "JUMP_IF", "TO_BOOL", "UNARY_NOT", "COMPARE_OP", "STORE_", "COPY", "DUP_")


def _asks(code: CodeType) -> bool:
    steps = list(dis.get_instructions(code))
    for step, following in itertools.pairwise(steps):
        reads = step.opname.startswith("LOAD_") and step.argval == "training"
        if reads and following.opname.startswith(_DECIDING):
            return True
    return any(_asks(inner) for inner in code.co_consts if isinstance(inner, CodeType))


@contextmanager
def preserve_random_states(model: nn.Module) -> Iterator[None]:
    """Restore the random states of Python, numpy and torch on exit.

    Args:
        model: A network, whose devices are included.
    """
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    numpy: Any = sys.modules.get("numpy")
    ours, theirs = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(ours)
        if numpy:
            numpy.random.set_state(theirs)
