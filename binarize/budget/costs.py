"""The costs of a network under a policy: file bytes or operations, without computing anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from binarize.errors import ModelError
from binarize.file import float_contents, network_contents
from binarize.graph import Plan, Traced
from binarize.graph.flow import all_layers
from binarize.graph.model_input import deepcopy_model
from binarize.graph.rewrite import apply_plan
from binarize.latency import Profile
from binarize.policy import Policy, with_overrides
from binarize.policy.match import Overrides
from binarize.report import report
from binarize.report.counts import planned_ops

__all__ = ["Costs", "before_and_after"]


class Costs:
    """Computes the costs of conversions of one network.

    Args:
        model: The float network; it stays unchanged.
        kinds: The kinds of cost: ``"bytes"``, ``"ops"``, ``"time"``.
        overrides: The user's overrides, tried before every policy's rules.
        example_inputs: As in :func:`binarize.plan`; operations are counted for them.
        profile: Latencies of the layers, required for "time".

    Raises:
        ModelError: As in :func:`binarize.plan`.
    """

    def __init__(
        self,
        model: nn.Module,
        kinds: Sequence[str],
        overrides: Overrides | None,
        example_inputs: Any,
        profile: Profile | None = None,
    ) -> None:
        self._kinds = kinds
        self._profile = profile
        self._overrides = overrides
        self._layers = all_layers(model)
        try:
            self._traced = Traced(_outline(model), _bare(example_inputs))
        except ModelError:
            # A forward that makes its own tensors cannot run without storage.
            self._traced = Traced(model, example_inputs)

    def plan(self, policy: Policy) -> Plan:
        """Plan with a policy, preceded by the user's overrides."""
        return self._traced.plan(policy, with_overrides(policy, self._overrides, self._layers))

    def of(self, policy: Policy) -> tuple[float, ...]:
        """Return the costs of the network under a policy, one for each kind.

        Raises:
            ModelError: Its operations cannot be counted.
            BinarizeError: The profile is not of this network.
        """
        plan = self.plan(policy)
        return tuple(self._count(kind, plan) for kind in self._kinds)

    def _count(self, kind: str, plan: Plan) -> float:
        if kind == "time":
            assert self._profile is not None
            return self._profile.predict({d.site: d.action for d in plan.layers})
        if kind == "bytes":
            return network_contents(self._traced.convert(plan), plan).size
        ops = planned_ops(self._traced.trace, plan)
        if ops is None:
            raise ModelError(
                "budget",
                "OPs",
                "some operations of this network cannot be counted",
                "give a size, such as '3MB'; binarize.report shows which",
            )
        return ops


def before_and_after(
    model: nn.Module, plan: Plan, example_inputs: Any = None
) -> dict[str, float | None]:
    """Return a network's costs before and after a plan, without converting it.

    Args:
        model: The float network; it stays unchanged.
        plan: Its plan.
        example_inputs: Those of the plan; operations are counted for them.

    Returns:
        ``float_bytes`` and ``bytes`` of the files, ``float_ops`` and ``ops`` (effective, float +
        binary / 64), ``None`` if some operations cannot be counted.
    """
    sizes: dict[str, float | None] = {"float_bytes": float_contents(model).size, "bytes": None}
    operations: dict[str, float | None] = {"float_ops": None, "ops": None}
    outline = _outline(model)
    apply_plan(outline, plan)
    sizes["bytes"] = network_contents(outline, plan).size
    for example in (_bare(example_inputs), example_inputs):
        try:
            counted = report(outline, example)
        except ModelError:  # a forward that makes its own tensors cannot run without storage
            continue
        operations = {"float_ops": counted.reference_ops, "ops": counted.ops}
        break
    return {**sizes, **operations}


def _outline(model: nn.Module) -> nn.Module:
    """Copy the network without storage."""
    bare = {id(tensor): _bare(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return deepcopy_model(model, bare)


def _bare(value: Any) -> Any:
    def bare(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        empty = torch.empty_like(x, device="meta", requires_grad=False)
        return nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty

    return tree_map(bare, value)
