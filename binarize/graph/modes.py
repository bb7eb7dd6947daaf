"""A second run, in training mode, of networks that go another way then.

An auxiliary head that exists in training mode only, or a head that returns its raw values then,
is not seen by a run in evaluation mode.
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

__all__ = ["random_states_kept", "training_run"]


def training_run(model: nn.Module, evaluated: Trace) -> Trace | None:
    """Run a network in training mode on the inputs of another run, if its code asks for the mode.

    Args:
        model: The network; neither its tensors nor its modules nor random states are changed.
        evaluated: Its run in evaluation mode.

    Returns:
        The run; ``None`` if no forward branches on the mode, or if the network does not run so
        (one that wants targets then, say).
    """
    classes: set[type] = {type(module) for module in model.modules() if _has_parts(module)}
    if not any(_branches_on_mode(cls) for cls in classes):
        return None
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def zeros(like: Tensor) -> Tensor:
        # A run keeps shapes alone; what is whole already is a run on real tensors.
        return torch.zeros(like.shape, dtype=like.dtype, device=device) if like.is_meta else like

    args, kwargs = tree_map_only(Tensor, zeros, evaluated.arguments.get("", ((), {})))
    try:
        with random_states_kept(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trace(model, args, kwargs, training=True)
    except Exception:
        return None


def _has_parts(module: nn.Module) -> bool:
    """Whether a module could call layers; a drop-path branches on the mode, and has none."""
    return module_kind(module) is None and any(True for _ in module.children())


@functools.lru_cache(maxsize=4096)
def _branches_on_mode(cls: type) -> bool:
    """Whether a method of a class does more with ``self.training`` than hand it on in a call."""
    for base in cls.__mro__:
        if base is nn.Module:
            return False
        if base.__module__.startswith("torch.nn."):
            continue
        for member in vars(base).values():
            code = getattr(inspect.unwrap(getattr(member, "__func__", member)), "__code__", None)
            if isinstance(code, CodeType) and _asks(code):
                return True
    return False


_DECIDING = ("POP_JUMP", "JUMP_IF", "TO_BOOL", "UNARY_NOT", "COMPARE_OP", "STORE_", "COPY", "DUP_")


def _asks(code: CodeType) -> bool:
    steps = list(dis.get_instructions(code))
    for step, following in itertools.pairwise(steps):
        reads = step.opname.startswith("LOAD_") and step.argval == "training"
        if reads and following.opname.startswith(_DECIDING):
            return True
    return any(_asks(inner) for inner in code.co_consts if isinstance(inner, CodeType))


@contextmanager
def random_states_kept(model: nn.Module) -> Iterator[None]:
    """Put back the states of Python's, numpy's and torch's random numbers afterwards.

    Args:
        model: A network, whose devices count.
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
