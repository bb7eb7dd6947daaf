"""Compute a row's shares and its list of kept layers from a plan."""

from __future__ import annotations

from typing import Any

from binarize.graph.plan import Decision, Plan
from binarize.survey.row import Row

__all__ = ["enter_plan"]


def enter_plan(row: Row, plan: Plan) -> None:
    """Fill in a row's numbers from a plan.

    Args:
        row: The row.
        plan: The network's plan.
    """
    row.params = plan.reference["params"]
    row.rewritten = len({decision.scope for decision in plan.decisions if decision.rewrite})
    row.opaque = dict(plan.opaque)
    kept: dict[tuple[tuple[str, ...], str], dict[str, Any]] = {}
    for layer in plan.layers:
        if layer.action in ("remove", "bypass"):
            row.gone += layer.weights
            continue
        dense = layer.weights if _is_dense(layer) else 0
        row.dense += dense
        if "vector" in layer.roles:
            row.single += dense
        if layer.action == "binarize":
            row.binary += layer.weights
            row.dense_binary += dense
            continue
        group = kept.setdefault(
            (layer.roles, layer.reason),
            {
                "roles": list(layer.roles),
                "reason": layer.reason,
                "layers": 0,
                "weights": 0,
                "dense": 0,
            },
        )
        group["layers"] += 1
        group["weights"] += layer.weights
        group["dense"] += dense
    row.kept = sorted(kept.values(), key=lambda group: -group["weights"])


def _is_dense(layer: Decision) -> bool:
    """Return whether a layer is a convolution or a pointwise linear layer."""
    if len(layer.shape) > 2:
        return True
    return not {"tokens", "attention", "vector", "unused"}.intersection(layer.roles)
