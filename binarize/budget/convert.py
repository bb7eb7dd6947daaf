"""The public functions: plan a conversion, and convert, optionally within a budget."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from binarize.budget.amount import Budget
from binarize.budget.choose import choose
from binarize.errors import BinarizeError
from binarize.file import float_contents
from binarize.graph import Plan
from binarize.graph import convert as convert_by
from binarize.graph import plan as plan_by
from binarize.graph.model_input import unwrap_model
from binarize.latency import Profile
from binarize.latency import profile as profile_by
from binarize.latency.measure import machine
from binarize.policy import Policy, load_policy
from binarize.policy.match import Overrides
from binarize.policy.more_bits import MoreBits
from binarize.report import Sensitivity

__all__ = ["convert", "plan"]


def plan(
    model: nn.Module,
    policy: str | Path | Policy = "bidense",
    *,
    example_inputs: Any = None,
    overrides: Overrides | None = None,
    budget: str | None = None,
    sensitivity: Sensitivity | Mapping[str, Any] | str | Path | None = None,
    more_bits: MoreBits = (),
    profile: Profile | str | Path | None = None,
) -> Plan:
    """Decide what a conversion would do, without converting.

    Args:
        model: The float network; it stays unchanged.
        policy: Name of a bundled policy, path of a rule file, or a :class:`Policy`.
        example_inputs: A tensor (N, C, *spatial), a tuple of positional arguments or a mapping of
            keyword arguments, on the network's device. By default, an image-like input with the
            number of channels of the first convolution.
        overrides: ``{selector: action}`` or a list of rule tables, tried before the policy's
            rules; see :func:`binarize.policy.match.with_overrides`. A selector, or the ``match``
            of a table, may also be a function of a layer's name and module that returns a bool.
        budget: Chooses which layers stay in float. A limit on the file's size (``"3MB"``,
            ``"2MiB"``, or ``"10%"`` of the float network's), the effective operations on the
            example inputs (``"5GOPs"``) or the packed network's latency (``"12ms"``, or
            ``"time=40%"`` of the float network's), or several of these (``"12ms,3MB"``), keeps the
            most sensitive layers in float within the budget. A limit on the predicted loss of the
            metric (``"drop=0.02"``) or on the predicted agreement with the float network
            (``"agreement=0.9"``) minimizes the size of the file. The prediction adds up the losses
            of single layers without training; together they lose more, so it ranks layers rather
            than promising a result. Overrides, and layers that the policy keeps, stay unchanged.
            Each layer's reason explains the decision, and ``plan.policy.save`` writes the choice as
            a rule file.
        sensitivity: The losses of the layers, for a budget: the result of
            :func:`binarize.sensitivity`, its ``to_dict()``, or its file. Sizes and operations use
            ``distance``; without sensitivities, all layers weigh the same, which keeps as many as
            possible.
        more_bits: What a budget may give to a layer besides one bit and float: the binarizers with
            more than one bit of these policies, such as ``"groupnet"`` (five bits per weight),
            ``"lqnet"`` (three bits per weight and activation) or your own rule file; or ``"int8"``,
            8-bit layers. ``sensitivity`` must include the losses with them, measured with the same
            ``more_bits``.
        profile: Latencies for a time budget: the result of :func:`binarize.profile` on this
            machine for the same policy, or its file. ``None`` measures them on ``example_inputs``.

    Returns:
        The plan: print it, compare it with another using :meth:`Plan.diff`, or read ``decisions``.

    Raises:
        PolicyError: The policy or an override is invalid, or an override matched no layer.
        ModelError: The network is already converted, has nothing to binarize, has non-finite
            weights, or does not accept the example inputs.
        BinarizeError: The budget cannot be met, requires nothing to be binary, or requires missing
            sensitivities; or the profile is from another machine.
    """
    chosen = _policy(
        model, policy, example_inputs, overrides, budget, sensitivity, more_bits, profile
    )
    return plan_by(model, chosen, example_inputs=example_inputs, overrides=overrides)


def convert(
    model: nn.Module,
    policy: str | Path | Policy = "bidense",
    *,
    example_inputs: Any = None,
    overrides: Overrides | None = None,
    budget: str | None = None,
    sensitivity: Sensitivity | Mapping[str, Any] | str | Path | None = None,
    more_bits: MoreBits = (),
    profile: Profile | str | Path | None = None,
) -> nn.Module:
    """Convert a float network to a 1-bit network with the same call signature.

    The float weights become the latent weights. BatchNorm statistics no longer fit: train, or
    call :func:`binarize.recalibrate` on a few batches, before you evaluate the result.

    Args:
        model: The float network; it stays unchanged and can serve as the teacher.
        policy: Name of a bundled policy, path of a rule file, or a :class:`Policy`.
        example_inputs: As in :func:`plan`.
        overrides: As in :func:`plan`.
        budget: As in :func:`plan`.
        sensitivity: As in :func:`plan`.
        more_bits: As in :func:`plan`.
        profile: As in :func:`plan`.

    Returns:
        A deep copy of ``model`` with binary layers, in the same training mode. Its attribute
        ``binarize_plan`` holds the plan.

    Raises:
        PolicyError: As in :func:`plan`.
        ModelError: As in :func:`plan`.
        BinarizeError: As in :func:`plan`.
    """
    chosen = _policy(
        model, policy, example_inputs, overrides, budget, sensitivity, more_bits, profile
    )
    return convert_by(model, chosen, example_inputs=example_inputs, overrides=overrides)


def _policy(
    model: nn.Module,
    policy: str | Path | Policy,
    example_inputs: Any,
    overrides: Overrides | None,
    budget: str | None,
    sensitivity: Any,
    more_bits: MoreBits,
    profile: Profile | str | Path | None,
) -> str | Path | Policy:
    if budget is None:
        for name, given in (
            ("sensitivity", sensitivity),
            ("more_bits", more_bits or None),
            ("profile", profile),
        ):
            if given is not None:
                raise BinarizeError(
                    name,
                    type(given).__name__,
                    "it has no effect without a budget",
                    "give a budget too, such as '3MB'",
                )
        return policy
    network = unwrap_model(model)
    limits = Budget.parse(budget)
    known = None
    if any(limit.kind.startswith("time") for limit in limits):
        known = _profile(profile, network, policy, overrides, example_inputs)
    size = float_contents(network).size if any(x.kind == "share" for x in limits) else 0
    limits = tuple(x.of(size, None if known is None else known.whole["keep"]) for x in limits)
    return choose(
        network,
        load_policy(policy),
        limits,
        sensitivity,
        overrides,
        example_inputs,
        more_bits,
        known,
    )


def _profile(
    given: Profile | str | Path | None,
    network: nn.Module,
    policy: str | Path | Policy,
    overrides: Overrides | None,
    example_inputs: Any,
) -> Profile:
    """Return the given latencies, checked for this machine, or measure new ones."""
    if given is None:
        if example_inputs is None:
            raise BinarizeError(
                "budget",
                "time",
                "latency depends on the size of the inputs",
                "give example_inputs, or profile=binarize.profile(model, example_inputs)",
            )
        return profile_by(network, example_inputs, policy=policy, overrides=overrides)
    known = given if isinstance(given, Profile) else Profile.load(given)
    known.check(machine())
    return known
