"""Where the binarized inputs of a task's layers differ from the base's, on real inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import ModelError
from binarize.graph.inputs import arguments
from binarize.nn import BinaryLayer

__all__ = ["Shares", "differing_inputs"]

Shares = dict[str, tuple[int, int]]
"""Differing and all binarized input values of each layer, by its name."""
_Levels = dict[tuple[str, int], Tensor]


@torch.no_grad()
def differing_inputs(
    base: nn.Module, tasks: Mapping[str, nn.Module], batches: Iterable[Any]
) -> tuple[dict[str, Shares], int]:
    """Count the binarized inputs of binary layers in which tasks differ from their base.

    Of a layer that runs several times, every call counts, against the same call of the base's.
    Layers whose inputs have another shape than the base's have nothing to compare with and are left
    out: they lie behind an output layer with other channels.

    Args:
        base: The base, in evaluation mode.
        tasks: The tasks' networks by name, in evaluation mode.
        batches: Inputs of the networks, one call each: a tensor, a tuple of positional arguments or
            a mapping of named ones.

    Returns:
        The shares of each task, layers in the order in which they run, and the number of batches.

    Raises:
        ModelError: The networks do not accept a batch.
    """
    totals: dict[str, Shares] = {name: {} for name in tasks}
    count = 0
    for batch in batches:
        count += 1
        known: _Levels = {}

        def remember(key: tuple[str, int], levels: Tensor, known: _Levels = known) -> None:
            known[key] = levels

        _run(base, batch, remember)
        for name, task in tasks.items():
            shares = totals[name]

            def compare(
                key: tuple[str, int],
                levels: Tensor,
                known: _Levels = known,
                shares: Shares = shares,
            ) -> None:
                before = known.get(key)
                if before is not None and before.shape == levels.shape:
                    differing, values = shares.get(key[0], (0, 0))
                    differing += int((levels != before).sum())
                    shares[key[0]] = differing, values + levels.numel()

            _run(task, batch, compare)
    return totals, count


def _run(network: nn.Module, batch: Any, see: Callable[[tuple[str, int], Tensor], None]) -> None:
    args, kwargs = arguments(batch)
    try:
        with _watching(network, see):
            network(*args, **kwargs)
    except Exception as error:
        shapes = [tuple(x.shape) for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        raise ModelError(
            "batches",
            shapes,
            "the network's forward does not accept them "
            f"({type(error).__name__}: {' '.join(str(error).split())[:160]})",
            "give inputs in the form of the network's call",
        ) from error


@contextmanager
def _watching(network: nn.Module, see: Callable[[tuple[str, int], Tensor], None]) -> Iterator[None]:
    """Pass on the levels of all binarized inputs inside this context."""
    calls: dict[str, int] = defaultdict(int)

    def listener(name: str) -> Any:
        def listen(binarizer: Any, args: Any, output: Tensor) -> None:
            see((name, calls[name]), binarizer.level_index(output))
            calls[name] += 1

        return listen

    hooks = [
        module.binarizer.register_forward_hook(listener(name))
        for name, module in network.named_modules()
        if isinstance(module, BinaryLayer)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
