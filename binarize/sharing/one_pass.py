"""How many operations several networks have in common when they run on the same input."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from binarize.graph.recorder import Op
from binarize.graph.trace import Trace
from binarize.report.counts import count, has_attention, kind_of
from binarize.report.numbers import effective_ops

__all__ = ["common_operations"]


_KINDS = "float", "int8", "binary"


def common_operations(runs: Sequence[tuple[nn.Module, Trace]]) -> float | None:
    """Return the effective operations that one pass for all networks saves.

    An operation is common if an earlier network has one in the same place, with the same inputs and
    the same numbers: what :func:`binarize.load` with several names computes once.

    Args:
        runs: Networks of one structure, and a run of each on the same input.

    Returns:
        Float + 8-bit / 8 + binary / 64 operations, of all networks together less those of one pass;
        ``None`` if some are unknown.
    """
    known: set[Any] = set()
    saved = 0.0
    for network, trace in runs:
        attention = has_attention(trace)
        # What each result is, the same in two networks if the results are.
        results: list[Any] = []
        content = _Content(network, trace)
        for op in trace.ops:
            place = op.kind, op.name, op.scope, op.call, op.ordinal, op.path, op.in_shape, op.shape
            inputs = tuple(results[i] for i in op.inputs)
            digest = hashlib.sha256(repr((place, inputs, content.of(op))).encode()).hexdigest()
            results.append(digest)
            if digest in known:
                module = None if op.path is None else network.get_submodule(op.path)
                macs = count(trace, op, attention=attention)
                kind = kind_of(module)
                ops = effective_ops(*(macs if kind == k else 0 for k in _KINDS))
                if ops is None:
                    return None
                saved += ops
        known.update(results)
    return saved


class _Content:
    """The numbers that operations of a run use, as hashes."""

    def __init__(self, network: nn.Module, trace: Trace) -> None:
        self._network, self._trace = network, trace
        self._known: dict[str, str] = {}

    def of(self, op: Op) -> str | None:
        """Return what an operation's result depends on apart from its inputs."""
        if op.path is not None:
            return self._hash(op.path, whole=True)
        return self._hash(op.scope, whole=False) if op.constant else None

    def _hash(self, path: str, *, whole: bool) -> str:
        key = f"{path}:{whole}"
        if key not in self._known:
            digest = hashlib.sha256()
            for name, module in self._network.get_submodule(path).named_modules():
                # A forward may use numbers of modules below it that are not called themselves.
                below = f"{path}.{name}".lstrip(".")
                if not whole and name and self._trace.calls.get(below):
                    continue
                for tensor_name, tensor in _tensors(module):
                    digest.update(f"{name}.{tensor_name} {tensor.dtype} {tensor.shape}".encode())
                    digest.update(_bytes(tensor))
            self._known[key] = digest.hexdigest()
        return self._known[key]


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    found = (
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    )
    # Training counts batches; no result depends on it.
    return [(name, tensor) for name, tensor in found if name != "num_batches_tracked"]


def _bytes(tensor: Tensor) -> bytes:
    value = tensor.detach().cpu().contiguous().reshape(-1)
    return value.view(torch.uint8).numpy().tobytes()
