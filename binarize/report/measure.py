"""Measure a network: a report with one row for each of its parts."""

from __future__ import annotations

from typing import Any, overload

from torch import nn

from binarize.file import float_contents, network_contents
from binarize.graph.inputs import run_example
from binarize.graph.model_input import unwrap_model
from binarize.graph.plan import Plan
from binarize.graph.sizes import size_notes, spelled_size
from binarize.graph.trace import Trace
from binarize.lower import PackedNetwork
from binarize.policy.write import to_toml
from binarize.report.flow import flow
from binarize.report.ledger import Ledger
from binarize.report.numbers import Report
from binarize.report.packed import PackedReport, packed_report

__all__ = ["report"]


@overload
def report(  # type: ignore[overload-overlap]
    model: PackedNetwork, example_inputs: Any = None
) -> PackedReport: ...
@overload
def report(model: nn.Module, example_inputs: Any = None) -> Report: ...
def report(model: nn.Module, example_inputs: Any = None) -> Report | PackedReport:
    """Count a network's parameters, operations and bytes, part by part.

    For a packed network, the report instead shows each layer's path, and why.

    Args:
        model: A converted, float or packed network; it stays unchanged.
        example_inputs: A tensor (N, C, *spatial), a tuple of positional arguments or a mapping of
            keyword arguments. Operations are counted for exactly these, over the whole batch.
            ``None`` uses a converted network's own example inputs; for a float network, operations
            are then unknown. Only shapes matter, nothing is computed.

    Returns:
        The report: print it, read its numbers, or call ``to_dict()``. For a packed network, a
        :class:`~binarize.report.packed.PackedReport`.

    Raises:
        ModelError: ``model`` is not a network, or does not accept the example inputs.
    """
    model = unwrap_model(model)
    if isinstance(model, PackedNetwork):
        return packed_report(model)
    plan = getattr(model, "binarize_plan", None)
    contents = float_contents(model) if plan is None else network_contents(model, plan)
    known = example_inputs is not None or (plan is not None and plan.example)
    trace = run_example(model, example_inputs) if known else None
    ledger = Ledger(model, plan)
    ledger.enter_bytes(contents)
    if trace is not None:
        ledger.enter_operations(trace)
    rows = ledger.rows()
    params, size = sum(r.float_params + r.int8_params + r.binary_params for r in rows), 0
    if plan is not None:
        params, size = plan.reference["params"], plan.reference["bytes"]
    else:
        size = sum(entry.size for entry in contents.entries)
    return Report(
        network=ledger.class_name(""),
        policy=None if plan is None else plan.policy.name,
        inputs=None if trace is None else _inputs(trace),
        layers=rows,
        file_bytes=contents.size,
        reference_params=params,
        reference_ops=None if trace is None else ledger.reference_operations(trace),
        reference_bytes=size,
        notes=() if plan is None else (*_notes(plan), *(size_notes(plan, trace) if trace else ())),
        flow=() if trace is None else flow(trace, ledger.layer),
        policy_text="" if plan is None else to_toml(plan.policy, inherit=False),
    )


def _inputs(trace: Trace) -> str:
    return ", ".join(spelled_size(op.shape) for op in trace.ops if op.kind == "input")


def _notes(plan: Plan) -> tuple[str, ...]:
    notes = []
    additions = plan.additions
    if additions:
        dropped = sum(d.action == "drop" for d in additions)
        notes.append(f"block shortcuts: {dropped} dropped, {len(additions) - dropped} kept")
    activations = plan.activations
    if activations:
        replaced = sum(d.action == "replace" for d in activations)
        notes.append(f"activations: {replaced} replaced, {len(activations) - replaced} kept")
    notes += [f"forward of {scope or '(root)'} kept: {why}" for scope, why in plan.opaque.items()]
    if plan.unmatched:
        notes.append(f"rules that matched nothing: {', '.join(plan.unmatched)}")
    return tuple(notes)
