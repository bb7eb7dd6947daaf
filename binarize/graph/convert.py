"""The public functions: plan a conversion, and convert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from binarize.errors import ModelError, PolicyError
from binarize.graph.flow import all_layers
from binarize.graph.inputs import run_example
from binarize.graph.model_input import deepcopy_model, unwrap_model
from binarize.graph.modes import preserve_random_states, training_run
from binarize.graph.origin import find_origin
from binarize.graph.plan import Plan
from binarize.graph.planner import make_plan
from binarize.graph.rewrite import apply_plan
from binarize.graph.scopes import ScopeGraph, ScopeGraphs
from binarize.nn.treated import TreatedLayer
from binarize.nn.treatments import TREATMENTS
from binarize.policy.loader import load_policy
from binarize.policy.match import Overrides, with_overrides
from binarize.policy.schema import Policy, Rule

__all__ = ["Traced", "convert", "plan"]


def plan(
    model: nn.Module,
    policy: str | Path | Policy = "bidense",
    *,
    example_inputs: Any = None,
    overrides: Overrides | None = None,
) -> Plan:
    """Decide what a conversion would do, without converting.

    Args:
        model: The float network; it stays unchanged.
        policy: As in :func:`binarize.plan`, which can also plan within a budget.
        example_inputs: As in :func:`binarize.plan`.
        overrides: As in :func:`binarize.plan`.

    Returns:
        The plan: print it, compare it with another using :meth:`Plan.diff`, or read ``decisions``.

    Raises:
        PolicyError: The policy or an override is invalid, or an override matched no layer.
        ModelError: The network is already converted, has nothing to binarize, has non-finite
            weights, or does not accept the example inputs.
    """
    return _plan(unwrap_model(model), policy, example_inputs, overrides)[0]


def convert(
    model: nn.Module,
    policy: str | Path | Policy = "bidense",
    *,
    example_inputs: Any = None,
    overrides: Overrides | None = None,
) -> nn.Module:
    """Convert a float network to a 1-bit network with the same call signature.

    The float weights become the latent weights. BatchNorm statistics no longer fit: train, or
    call :func:`binarize.recalibrate` on a few batches, before you evaluate the result.

    Args:
        model: The float network; it stays unchanged and can serve as the teacher.
        policy: Name of a bundled policy, path of a rule file, or a :class:`Policy`.
        example_inputs: As in :func:`plan`.
        overrides: As in :func:`plan`.

    Returns:
        A deep copy of ``model`` with binary layers, in the same training mode. Its attribute
        ``binarize_plan`` holds the plan.

    Raises:
        PolicyError: As in :func:`plan`.
        ModelError: As in :func:`plan`.
    """
    model = unwrap_model(model)
    plan, graphs = _plan(model, policy, example_inputs, overrides)
    student = deepcopy_model(model)
    apply_plan(student, plan, graphs)
    return student


def _plan(
    model: nn.Module,
    policy: str | Path | Policy,
    example_inputs: Any,
    overrides: Overrides | None,
) -> tuple[Plan, dict[str, ScopeGraph]]:
    base = load_policy(policy)
    chosen = with_overrides(base, overrides, all_layers(model))
    plan, graphs = Traced(model, example_inputs).planned(base, chosen)
    _check_plan(model, plan, chosen.rules[: len(chosen.rules) - len(base.rules)])
    return plan, graphs


class Traced:
    """A float network traced once, which can be planned and converted any number of times.

    Args:
        model: The network; do not change it afterwards.
        example_inputs: As in :func:`plan`.

    Attributes:
        trace: The run.

    Raises:
        ModelError: As in :func:`plan`.
    """

    def __init__(self, model: nn.Module, example_inputs: Any = None) -> None:
        _check_model(model)
        self.model = model
        self.trace = run_example(model, example_inputs)
        self._training = training_run(model, self.trace)
        self._origin = find_origin(model)
        self._scopes = ScopeGraphs(dict(self.trace.model.named_modules(remove_duplicate=False)))

    def plan(self, policy: Policy, chosen: Policy | None = None) -> Plan:
        """Plan with a policy, even one that makes nothing binary.

        Args:
            policy: The policy.
            chosen: The policy with the user's overrides in front, if there are any.
        """
        return self.planned(policy, chosen)[0]

    def planned(
        self, policy: Policy, chosen: Policy | None = None
    ) -> tuple[Plan, dict[str, ScopeGraph]]:
        """Plan as above, and also return the graphs, so that :func:`apply_plan` can reuse them."""
        chosen = policy if chosen is None else chosen
        overrides = len(chosen.rules) - len(policy.rules)
        # Forwards are also traced symbolically, in training mode.
        with preserve_random_states(self.model):
            return make_plan(
                self.trace,
                chosen,
                self._origin,
                overrides=overrides,
                training=self._training,
                scopes=self._scopes,
            )

    def convert(self, plan: Plan) -> nn.Module:
        """Return a deep copy of the network, binarized by a plan from :meth:`plan`."""
        student = deepcopy_model(self.model)
        scopes = {edit.scope for edit in plan.edits}
        graphs = {s: self._scopes(s, plan.arguments.get(s, {})).copied() for s in scopes}
        apply_plan(student, plan, graphs)
        return student


def _check_model(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "model",
            type(model).__name__,
            "a scripted module has no Python forward",
            "give the network that was scripted",
        )
    if any(isinstance(module, TreatedLayer) for module in model.modules()):
        raise ModelError(
            "model",
            type(model).__name__,
            "it already has binary layers",
            "convert the float network that it came from",
        )
    if "" in all_layers(model):
        raise ModelError(
            "model",
            type(model).__name__,
            "the network is a single layer",
            "wrap it: torch.nn.Sequential(layer)",
        )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(
                "model",
                name,
                "this parameter of a lazy module has no shape yet",
                "run the network on one batch first",
            )
        if parameter.device.type != "meta" and not _is_finite(parameter):
            raise ModelError(
                "model",
                name,
                "this parameter holds NaN or infinity",
                "train or load the network again; its signs would mean nothing",
            )
    for name, buffer in model.named_buffers():
        # Other buffers may hold infinity for good reason: attention masks do.
        is_statistic = name.endswith(("running_mean", "running_var"))
        if is_statistic and buffer.device.type != "meta" and not _is_finite(buffer):
            raise ModelError(
                "model",
                name,
                "this statistic of a norm holds NaN or infinity",
                "train or load the network again, or call binarize.recalibrate on it first",
            )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point():
        return bool(tensor.isfinite().all())
    # Unlike a mask, the largest magnitude takes one pass and no memory.
    return not tensor.numel() or bool(
        torch.linalg.vector_norm(tensor.detach(), torch.inf).isfinite()
    )


def _check_plan(model: nn.Module, plan: Plan, overrides: Sequence[Rule]) -> None:
    # An override refers to this network, and so does a rule that names layers or classes.
    about_this = {str(rule) for rule in plan.policy.rules if rule.match.is_specific}
    about_this |= {str(rule) for rule in overrides}
    lost = [rule for rule in plan.unmatched if rule in about_this]
    if lost:
        names = ", ".join(d.site for d in plan.layers[:4])
        raise PolicyError(
            "overrides" if lost[0] in {str(rule) for rule in overrides} else "policy",
            lost[0],
            "this rule matched no layer",
            f"correct its pattern; the layers are {names}, ..."
            if names
            else "remove it: the network has no convolution or linear layer",
        )
    if not any(d.action in TREATMENTS and d.action != "keep" for d in plan.layers):
        kept: Mapping[str, str] = {d.site: d.reason for d in plan.layers}
        why = "; ".join(f"{site}: {reason}" for site, reason in list(kept.items())[:3])
        raise ModelError(
            "model",
            type(model).__name__,
            f"there is nothing to binarize ({why or 'no convolution or linear layer'})",
            "overrides={'role:attention': 'keep', 'role:tokens': 'binarize'} makes the layers over "
            "tokens binary"
            if any("tokens" in d.roles for d in plan.layers)
            else "use another network, or overrides={'layer.name': 'binarize'}",
        )
