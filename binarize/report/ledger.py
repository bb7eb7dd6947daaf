"""Assign every parameter, byte and operation of a network to one row."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from binarize.file import Contents
from binarize.graph.classify import module_kind
from binarize.graph.decisions import Decision, LayerDecision
from binarize.graph.plan import Plan
from binarize.graph.recorder import Op
from binarize.graph.trace import Trace
from binarize.nn.treated import TreatedLayer
from binarize.report.counts import count, has_attention, kind_of
from binarize.report.numbers import Row

__all__ = ["Ledger"]

_NOTHING: dict[str, Any] = {"float_ops": 0, "binary_ops": 0, "int8_ops": 0}
_PARTS = {"norm": "norm", "activation": "activation"}


@dataclass
class _Account:
    """A row under construction."""

    row: Row

    def set(self, **values: Any) -> None:
        self.row = replace(self.row, **values)

    def add(self, **amounts: int | None) -> None:
        """Add to numbers; unknown ones stay unknown."""
        for name, amount in amounts.items():
            so_far = getattr(self.row, name)
            self.set(**{name: None if amount is None or so_far is None else so_far + amount})


class Ledger:
    """The rows of a network: layers first, then everything else with parameters or products.

    Args:
        model: The network.
        plan: Its plan, if it was converted.
    """

    def __init__(self, model: nn.Module, plan: Plan | None) -> None:
        self.model = model
        self.plan = plan
        self._rewritten = set() if plan is None else {edit.scope for edit in plan.edits}
        self._accounts: list[_Account] = []
        self._by_module: dict[int, _Account] = {}
        self._by_tensor: dict[int, _Account] = {}
        self._operations: dict[tuple[str, str], _Account] = {}
        self._open_layers()
        self._open_others()

    def rows(self) -> tuple[Row, ...]:
        """Return the current rows."""
        return tuple(account.row for account in self._accounts)

    def class_name(self, path: str) -> str:
        """Return a module's original class name: a rewritten module has a subclass."""
        cls = type(self.model.get_submodule(path))
        return cls.__bases__[0].__name__ if path in self._rewritten else cls.__name__

    def layer(self, op: Op) -> str | None:
        """Return the row name of the layer that an operation calls; ``None`` for others."""
        module = self._module(op)
        known = None if module is None else self._by_module.get(id(module))
        return known.row.name if known is not None and known.row.part == "layer" else None

    # Parameters

    def _open_layers(self) -> None:
        decided = self.plan.layers if self.plan is not None else ()
        for decision in decided:
            module = _submodule(self.model, decision.site)
            self._open_layer(decision.site, module, decision)
        for path, module in self.model.named_modules():
            if module_kind(module) == "layer" and id(module) not in self._by_module:
                self._open_layer(path, module, None)

    def _open_layer(
        self, path: str, module: nn.Module | None, decision: LayerDecision | None
    ) -> None:
        account = _Account(Row(path, "layer", type(module).__name__))
        if decision is not None:
            account.set(kind=decision.kind, shape=decision.shape, **_ground(decision))
        self._accounts.append(account)
        if module is None:
            return
        self._by_module[id(module)] = account
        weight: Any = getattr(module, "weight", None)
        if module_kind(module) == "layer" and isinstance(weight, Tensor):
            bits = (8 * weight.element_size(),) * 2
            if isinstance(module, TreatedLayer):
                bits = module.weight_bits, module.activation_bits
            account.set(
                shape=account.row.shape or tuple(weight.shape),
                weight_bits=bits[0],
                activation_bits=bits[1],
            )
        for child in module.modules():
            self._claim(account, child)

    def _open_others(self) -> None:
        decided = () if self.plan is None else self.plan.activations
        # A rewritten forward calls a new module, whose name identifies the replaced call.
        decisions = {
            f"{d.scope}.prelu_{d.ordinal}".lstrip(".") if d.rewrite else d.site: d for d in decided
        }
        for path, module in self.model.named_modules():
            part = _PARTS.get(module_kind(module) or "", "other")
            account = _Account(Row(path or "(root)", part, self.class_name(path)))
            if not self._claim(account, module):
                continue
            decision = decisions.get(path)
            if decision is not None and part == "activation":
                account.set(**_ground(decision))
            self._accounts.append(account)
            self._by_module[id(module)] = account

    def _claim(self, account: _Account, module: nn.Module) -> bool:
        """Count a module's own tensors if no row has; return whether there were any."""
        found = False
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in self._by_tensor:
                self._by_tensor[id(parameter)] = account
                found = True
                if isinstance(module, TreatedLayer) and name == "weight":
                    # Each bit counts, up to 8-bit weights, which are a kind of their own.
                    kind, each = (
                        kind_of(module),
                        1 if kind_of(module) == "int8" else module.weight_bits,
                    )
                    account.add(**{f"{kind}_params": module.weights * each})
                else:
                    account.add(float_params=parameter.numel())
        for name, buffer in module.named_buffers(recurse=False):
            stored = name not in module._non_persistent_buffers_set
            if stored and id(buffer) not in self._by_tensor:
                self._by_tensor[id(buffer)] = account
                found = True
        return found

    # Bytes

    def enter_bytes(self, contents: Contents) -> None:
        """Count the bytes of a file; those outside tensors become a row of their own."""
        state = self.model.state_dict(keep_vars=True)
        booked = 0
        for entry in contents.entries:
            holders = {id(state[key]) for key in entry.keys}
            for identity in holders:
                self._by_tensor[identity].add(bytes=entry.size // len(holders))
            booked += entry.size
        header = Row("header and metadata", "file", "safetensors", **_NOTHING)
        self._accounts.append(_Account(replace(header, bytes=contents.size - booked)))

    # Operations

    def enter_operations(self, trace: Trace) -> None:
        """Count the multiply-accumulates and calls of a run."""
        for account in self._accounts:
            account.set(**_NOTHING, calls=None if account.row.part == "file" else 0)
        attention = has_attention(trace)
        for op in trace.ops:
            macs = count(trace, op, attention=attention)
            module = self._module(op)
            known = None if module is None else self._by_module.get(id(module))
            if known is not None:
                known.add(**{f"{kind_of(module)}_ops": macs}, calls=1)
            elif macs != 0:
                self._open_operation(op).add(float_ops=macs, calls=1)

    def _open_operation(self, op: Op) -> _Account:
        place = op.path or op.scope
        if (place, op.name) not in self._operations:
            row = Row(f"{place or '(root)'}:{op.name}", "operation", op.name, **_NOTHING)
            account = _Account(replace(row, calls=0))
            self._operations[place, op.name] = account
            self._accounts.insert(len(self._accounts) - 1, account)
        return self._operations[place, op.name]

    def _module(self, op: Op) -> nn.Module | None:
        return None if op.path is None else _submodule(self.model, op.path)

    def reference_operations(self, trace: Trace) -> int | None:
        """Return the float network's multiply-accumulates, including those of removed layers."""
        total = 0
        for account in self._accounts:
            counts = account.row.float_ops, account.row.binary_ops, account.row.int8_ops
            if None in counts:
                return None
            total += sum(n for n in counts if n is not None)
        for decision in self.plan.layers if self.plan is not None else ():
            if decision.action in ("remove", "bypass"):
                place = decision.site if decision.action == "bypass" else decision.like
                if place is None:
                    return None
                module = _submodule(self.model, place)
                for op in trace.ops:
                    if module is not None and self._module(op) is module:
                        total += op.shape[0] * math.prod(op.shape[2:]) * decision.weights
        return total


def _ground(decision: Decision) -> dict[str, str]:
    return {"decision": decision.action, "reason": decision.reason, "rule": decision.rule}


def _submodule(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
