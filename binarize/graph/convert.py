"""The public calls: plan a conversion, convert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from binarize.errors import ModelError, PolicyError
from binarize.graph.flow import all_layers
from binarize.graph.given import copied, given_network
from binarize.graph.inputs import run_example
from binarize.graph.modes import random_states_kept, training_run
from binarize.graph.origin import find_origin
from binarize.graph.plan import Plan
from binarize.graph.planner import make_plan
from binarize.graph.rewrite import apply_plan
from binarize.graph.scopes import ScopeGraph
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
    """Decide what a conversion would do, without doing it.

    Args:
        model: The float network; unchanged.
        policy: As in :func:`binarize.plan`, which plans within a budget, too.
        example_inputs: As there.
        overrides: As there.

    Returns:
        The plan: print it, compare it with another by :meth:`Plan.diff`, or read ``decisions``.

    Raises:
        PolicyError: The policy or an override is wrong, or an override matched no layer.
        ModelError: The network is already converted, has nothing to binarize, has weights that
            are not finite, or does not accept the example inputs.
    """
    return _plan(given_network(model), policy, example_inputs, overrides)[0]


def convert(
    model: nn.Module,
    policy: str | Path | Policy = "bidense",
    *,
    example_inputs: Any = None,
    overrides: Overrides | None = None,
) -> nn.Module:
    """Turn a float network into a 1-bit network of the same call signature.

    The float weights become the latent weights. BatchNorm statistics no longer fit: train, or
    call :func:`binarize.recalibrate` on a few batches, before judging the result.

    Args:
        model: The float network; unchanged, it can serve as the teacher.
        policy: Name of a bundled policy, path of a rule file, or a :class:`Policy`.
        example_inputs: As in :func:`plan`.
        overrides: As in :func:`plan`.

    Returns:
        A deep copy of ``model`` with binary units, in the same training mode. Its attribute
        ``binarize_plan`` holds the plan.

    Raises:
        PolicyError: As in :func:`plan`.
        ModelError: As in :func:`plan`.
    """
    model = given_network(model)
    plan, graphs = _plan(model, policy, example_inputs, overrides)
    student = copied(model)
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
    """A float network that ran once, to be planned and converted as often as wanted.

    Args:
        model: The network; it must not change.
        example_inputs: As in :func:`plan`.

    Raises:
        ModelError: As in :func:`plan`.
    """

    def __init__(self, model: nn.Module, example_inputs: Any = None) -> None:
        _check_model(model)
        self.model = model
        self._trace = run_example(model, example_inputs)
        self._training = training_run(model, self._trace)
        self._origin = find_origin(model)

    def plan(self, policy: Policy, chosen: Policy | None = None) -> Plan:
        """Plan by a policy; one that makes nothing binary is as good as any other here.

        Args:
            policy: The policy.
            chosen: The same with the user's overrides in front, if there are any.
        """
        return self.planned(policy, chosen)[0]

    def planned(
        self, policy: Policy, chosen: Policy | None = None
    ) -> tuple[Plan, dict[str, ScopeGraph]]:
        """Plan as above, and hand out the graphs that :func:`apply_plan` would take again."""
        chosen = policy if chosen is None else chosen
        asked = len(chosen.rules) - len(policy.rules)
        # Forwards are also traced as code, in training mode.
        with random_states_kept(self.model):
            return make_plan(
                self._trace, chosen, self._origin, asked=asked, training=self._training
            )

    def convert(self, plan: Plan) -> nn.Module:
        """Return a deep copy of the network, made binary by a plan of :meth:`plan`."""
        student = copied(self.model)
        apply_plan(student, plan)
        return student


def _check_model(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "model",
            type(model).__name__,
            "a scripted module has no Python forward left",
            "give the network that it was scripted from",
        )
    if any(isinstance(module, TreatedLayer) for module in model.modules()):
        raise ModelError(
            "model",
            type(model).__name__,
            "it has binary layers already",
            "convert the float network it came from",
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
                "run the network once on a batch first",
            )
        if parameter.device.type != "meta" and not _is_finite(parameter):
            raise ModelError(
                "model",
                name,
                "this parameter holds NaN or infinity",
                "train or load the network again; its signs would mean nothing",
            )
    for name, buffer in model.named_buffers():
        # Other buffers may hold infinity for good reason, attention masks do.
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
    # The largest magnitude takes one pass and no memory, unlike a mask.
    return not tensor.numel() or bool(
        torch.linalg.vector_norm(tensor.detach(), torch.inf).isfinite()
    )


def _check_plan(model: nn.Module, plan: Plan, overrides: Sequence[Rule]) -> None:
    # An override is about this network, and so is a rule that names layers or classes.
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
            else "leave it out: the network has no convolution or linear layer",
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
