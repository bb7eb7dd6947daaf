"""One run of a network, recorded as a list of operations.

The network runs for real, it is not interpreted: control flow takes the branch that the example
inputs select, and lists, dictionaries and dataclasses of tensors pass unchanged. The run uses fake
tensors (shapes without values), which take neither time nor memory, and falls back to real ones
where the forward reads a value. It has no side effects, see :mod:`binarize.graph.shapes_only`.
"""

from __future__ import annotations

import logging
import traceback
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from binarize.graph.model_input import deepcopy_model
from binarize.graph.recorder import Op, Recorder
from binarize.graph.shapes_only import ShapesOnly, leave_nothing, namespaces, preserve_generators
from binarize.graph.type_checks import TypeChecks, record_type_checks

__all__ = ["Trace", "skeleton", "trace"]


@dataclass
class Trace:
    """A recorded run.

    Attributes:
        ops: All operations, in order.
        model: The copy that ran; it shares its parameters with the original.
        arguments: Positional and keyword arguments by scope path, from the scope's first call.
        calls: Number of calls, by module path.
        direct: ``id`` of the parameters that functions took as operands.
        type_checks: The modules whose class the forwards checked.
        consumers: Per operation, those that read its result.
        inside: By scope path, the operations that its own forward made.
    """

    ops: list[Op]
    model: nn.Module
    arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]]
    calls: dict[str, int]
    direct: frozenset[int]
    type_checks: TypeChecks = field(default_factory=TypeChecks)
    consumers: list[list[int]] = field(default_factory=list)
    inside: dict[str, list[Op]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.consumers = [[] for _ in self.ops]
        for op in self.ops:
            self.inside[op.scope].append(op)
            for source in dict.fromkeys(op.inputs):
                self.consumers[source].append(op.index)


def skeleton(model: nn.Module, *, copy_buffers: bool = False) -> nn.Module:
    """Copy the modules of a network, sharing parameters and buffers with the original."""
    shared = model.parameters() if copy_buffers else (*model.parameters(), *model.buffers())
    return deepcopy_model(model, {id(tensor): tensor for tensor in shared})


def trace(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    *,
    training: bool = False,
) -> Trace:
    """Run a copy of ``model`` in eval mode and record its operations.

    Args:
        model: The network; its tensors and modules stay unchanged.
        args: Positional arguments; only shapes, dtypes and devices of tensors matter.
        kwargs: Keyword arguments.
        training: Run it in training mode.

    Returns:
        The recorded run.

    Raises:
        Exception: Whatever the network's forward raises on these arguments.
    """
    kwargs = dict(kwargs or {})
    if all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        # Tensors without storage are already shapes, and have no values to fall back on.
        return _record(skeleton(model, copy_buffers=training), args, kwargs, None, training)
    before = namespaces(model)
    fake = ShapesOnly()
    copy = skeleton(model, copy_buffers=training)
    recorded: Trace | None = None
    try:
        recorded = _record(copy, args, kwargs, fake, training)
    except Exception as error:
        # The forward needs values (data-dependent control flow).
        traceback.clear_frames(error.__traceback__)
    leave_nothing(fake, model, copy, before)
    if recorded is not None:
        return recorded
    # Run once on real tensors. A forward may write to buffers, but not to parameters.
    with preserve_generators():
        return _record(skeleton(model, copy_buffers=True), args, kwargs, None, training)


def _record(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    fake: ShapesOnly | None,
    training: bool,
) -> Trace:
    model.train(training)
    recorder = Recorder(model, fake)
    if fake is not None:
        args = tree_map_only(Tensor, fake.stand_in, tuple(args))
        kwargs = tree_map_only(Tensor, fake.stand_in, kwargs)
    with torch.no_grad(), _quiet(), recorder.hooked(), fake or nullcontext():
        recorder.add_inputs((args, kwargs))
        with record_type_checks(model, recorder.paths) as type_checks, recorder:
            outputs = model(*args, **kwargs)
        recorder.add_outputs(outputs)
    return Trace(
        recorder.ops,
        model,
        {path: _shapes_of(given) for path, given in recorder.arguments.items()},
        dict(recorder.calls),
        frozenset(recorder.direct),
        type_checks,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's logs of a failed attempt, and Lightning's warning of a missing trainer."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            # A copy has no trainer to log to, whatever the network has.
            warnings.filterwarnings("ignore", r"You are trying to `self\.log\(\)`")
            yield
    finally:
        logger.disabled = disabled


def _shapes_of(values: Any) -> Any:
    """Return a call's arguments with tensors that keep nothing of the run alive."""
    return tree_map_only(
        Tensor,
        lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta"),
        values,
    )
