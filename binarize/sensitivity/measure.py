"""Binarize one layer at a time, or all but one, and measure the effect."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from binarize.errors import DataError, ModelError, PolicyError
from binarize.graph import LayerDecision, Plan, Traced
from binarize.graph.flow import all_layers
from binarize.graph.model_input import deepcopy_model, unwrap_model
from binarize.lower import PackedNetwork
from binarize.policy import Match, Policy, Rule, load_policy, with_overrides
from binarize.policy.match import Overrides
from binarize.policy.more_bits import MoreBits, MoreBitsRule, more_bits_rules
from binarize.report.sensitivity import MEASURES, MODES, Sensitivity, SiteSensitivity
from binarize.sensitivity.compare import Comparator, EvalResult, error_of_mean
from binarize.train import Task, recalibrate
from binarize.train.batches import batch_image
from binarize.train.norms import has_statistics

__all__ = ["Study", "sensitivity"]


def sensitivity(
    model: nn.Module,
    data: Iterable[Any],
    *,
    task: Task | None = None,
    policy: str | Path | Policy | None = None,
    mode: str = "alone",
    overrides: Overrides | None = None,
    more_bits: MoreBits = (),
    calibration: Iterable[Any] | None = None,
    teacher: nn.Module | None = None,
    example_inputs: Any = None,
    on_site: Callable[[SiteSensitivity, int, int], None] | None = None,
) -> Sensitivity:
    """Measure the effect of binarizing each layer, without training.

    For each layer that the policy binarizes, a network is built in which only this layer is binary
    (``mode="alone"``), or all others are (``mode="without"``). Its norm statistics are
    re-estimated, and its output is compared with that of the float network, whose norms are
    re-estimated on the same images. A layer whose binarization changes nothing has zero loss.

    Layers are compared before any training, which recovers much of the loss, but not equally
    everywhere. In mode ``"without"``, an untrained network is mostly too degraded to distinguish
    layers; give a trained one.

    Args:
        model: The trained float network; in mode ``"without"`` a trained 1-bit one. Unchanged.
        data: Batches to measure on, kept in memory: images with targets for the task, or
            without a task images (N, C, H, W). A few dozen images are enough to rank layers.
        task: The task whose metric is measured, from :mod:`binarize.train`; ``None`` compares
            outputs only.
        policy: The policy: name of a bundled one, path of a rule file, or a
            :class:`Policy`. ``None`` is ``"bidense"``, or a 1-bit network's own policy.
        mode: ``"alone"`` or ``"without"``.
        overrides: As in :func:`binarize.plan`; layers that they keep are not measured.
        more_bits: As in :func:`binarize.plan`; each layer is also measured with the multi-bit
            binarizers of these policies, or in 8 bits (``"int8"``), which takes as long again for
            each. Only in mode ``"alone"``.
        calibration: Batches to estimate norm statistics on; ``None`` uses the images of ``data``.
        teacher: The float network that a 1-bit ``model`` was converted from. In mode
            ``"without"``, the float layer takes its weights, norm and activation from here.
        example_inputs: As in :func:`binarize.plan`; ``None`` is the first image of ``data``.
        on_site: Called with (result, layers done, total layers) after each layer.

    Returns:
        The result, to print, rank, save, or pass to :func:`binarize.plan` with a budget.

    Raises:
        PolicyError: As in :func:`binarize.plan`, or the mode is unknown.
        ModelError: As in :func:`binarize.plan`, or model, mode and teacher do not match.
        DataError: There is no batch, or a batch does not fit the task.
    """
    study = Study(
        model,
        data,
        task=task,
        policy=policy,
        mode=mode,
        overrides=overrides,
        more_bits=more_bits,
        calibration=calibration,
        teacher=teacher,
        example_inputs=example_inputs,
    )
    rows = []
    for number, site in enumerate(study.sites, start=1):
        rows.append(study.measure(site))
        if on_site is not None:
            on_site(rows[-1], number, len(study.sites))
    return study.result(rows)


class Study:
    """:func:`sensitivity`, one layer at a time.

    Args:
        model: As in :func:`sensitivity`.
        data: As in :func:`sensitivity`.
        task: As in :func:`sensitivity`.
        policy: As in :func:`sensitivity`.
        mode: As in :func:`sensitivity`.
        overrides: As in :func:`sensitivity`.
        more_bits: As in :func:`sensitivity`.
        calibration: As in :func:`sensitivity`.
        teacher: As in :func:`sensitivity`.
        example_inputs: As in :func:`sensitivity`.

    Attributes:
        sites: Names of the layers to measure, in execution order.

    Raises:
        PolicyError: As in :func:`sensitivity`.
        ModelError: As in :func:`sensitivity`.
        DataError: As in :func:`sensitivity`.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Any],
        *,
        task: Task | None = None,
        policy: str | Path | Policy | None = None,
        mode: str = "alone",
        overrides: Overrides | None = None,
        more_bits: MoreBits = (),
        calibration: Iterable[Any] | None = None,
        teacher: nn.Module | None = None,
        example_inputs: Any = None,
    ) -> None:
        if mode not in MODES:
            raise PolicyError("mode", mode, "no such mode", f"use {' or '.join(MODES)}")
        self.mode = mode
        self._more = more_bits_rules(more_bits)
        if self._more and mode != "alone":
            raise PolicyError(
                "more_bits",
                ", ".join(self._more),
                "their gain for a layer is measured with all other layers in float",
                "use mode='alone'",
            )
        model = unwrap_model(model)
        plan: Plan | None = getattr(model, "binarize_plan", None)
        _check(model, plan, mode, policy, overrides, teacher)
        base = model if teacher is None else unwrap_model(teacher)
        if plan is not None:
            self._policy = plan.policy
        else:
            chosen = load_policy("bidense" if policy is None else policy)
            self._policy = with_overrides(chosen, overrides, all_layers(base))
        batches = list(data)
        if not batches:
            raise DataError("data", 0, "has no batches", "give at least one batch of images")
        self._device = next((p.device for p in base.parameters()), torch.device("cpu"))
        if example_inputs is None:
            example_inputs = batch_image(batches[0])[:1].to(self._device)
        self._traced = Traced(base, example_inputs)
        whole = self._traced.plan(self._policy)
        if plan is not None:
            _check_teacher(plan, whole)
        self._sites = {d.site: d for d in whole.layers if d.action != "keep"}
        if not self._sites:
            raise ModelError(
                "model",
                type(base).__name__,
                "there is nothing to binarize, and so nothing to measure",
                "use another policy, or other overrides",
            )
        self.sites = tuple(self._sites)
        self._calibration = batches if calibration is None else list(calibration)
        self._task = task
        reference = self._ready(deepcopy_model(base))
        self._comparator = Comparator(reference, batches, task, self._device)
        self._trained = None if plan is None else model
        self._binary: EvalResult | None = None
        if mode == "without":
            trained = self._trained
            made = self._traced.convert(whole) if trained is None else deepcopy_model(trained)
            self._binary = self._comparator.evaluate(self._ready(made))

    def measure(self, site: str) -> SiteSensitivity:
        """Measure one layer.

        Args:
            site: One of ``sites``.
        """
        decision = self._sites[site]
        if self._binary is None:
            row = self._alone(site)
            more = {
                name: self._alone(site, rule)
                for name, rule in self._more.items()
                if rule.suits(decision.action)
            }
            losses = {
                name: {measure: getattr(other, measure) for measure in MEASURES}
                for name, other in more.items()
            }
            return replace(row, more=losses)
        network = self._traced.convert(self._plan([site]))
        if self._trained is not None:
            _copy_trained_state(network, self._trained, site)
        restored = self._comparator.evaluate(self._ready(network))
        return self._row(decision, self._binary, restored, restored)

    def _alone(self, site: str, more: MoreBitsRule | None = None) -> SiteSensitivity:
        """Measure a layer that is the only one treated, by the policy or with more bits."""
        kept = [name for name in self.sites if name != site]
        own = []
        if more is not None:
            match = Match(name=(glob.escape(site),))
            own = [Rule(match, more.action, "with more bits", more.unit)]
        plan = self._plan(kept, own)
        binary = self._comparator.evaluate(self._ready(self._traced.convert(plan)))
        decision = next(d for d in plan.layers if d.site == site)
        return self._row(decision, binary, self._comparator.reference, binary)

    def result(self, rows: Sequence[SiteSensitivity]) -> Sensitivity:
        """Combine measured layers; missing ones are reported as such."""
        order = {site: number for number, site in enumerate(self.sites)}
        binary = self._binary
        return Sensitivity(
            network=type(self._traced.model).__name__,
            policy=self._policy.name,
            mode=self.mode,
            trained=self._trained is not None,
            metric=None if self._task is None else self._task.monitor,
            float_metric=self._comparator.reference.metric,
            binary_metric=None if binary is None else binary.metric,
            binary_distance=None if binary is None else binary.distance,
            binary_disagreement=None if binary is None else binary.disagreement,
            images=self._comparator.images,
            calibration=sum(len(batch_image(batch)) for batch in self._calibration),
            planned=len(self.sites),
            sites=tuple(sorted(rows, key=lambda row: order[row.site])),
        )

    def _plan(self, kept: Sequence[str], rules: Sequence[Rule] = ()) -> Plan:
        """Plan with some layers kept, after further rules."""
        names = tuple(map(glob.escape, kept))
        keep = [Rule(Match(name=names), "keep", "not part of this step")] if names else []
        return self._traced.plan(self._policy, with_overrides(self._policy, [*rules, *keep]))

    def _ready(self, network: nn.Module) -> nn.Module:
        """Re-estimate a network's norm statistics and ranges."""
        if any(map(has_statistics, network.modules())):
            recalibrate(network, self._calibration)
        return network

    def _row(
        self, decision: LayerDecision, binary: EvalResult, other: EvalResult, made: EvalResult
    ) -> SiteSensitivity:
        """Compare a network with another in which one layer less is binary."""
        sign = -1 if self._task is not None and not self._task.higher_is_better else 1
        drops = [sign * (a - b) for a, b in zip(other.metrics, binary.metrics, strict=True)]
        gaps = [a - b for a, b in zip(binary.distances, other.distances, strict=True)]
        drop = None
        if binary.metric is not None and other.metric is not None:
            drop = sign * (other.metric - binary.metric)
        return SiteSensitivity(
            site=decision.site,
            kind=decision.kind,
            shape=decision.shape,
            action=decision.action,
            metric=made.metric,
            drop=drop,
            drop_error=error_of_mean(drops),
            distance=binary.distance - other.distance,
            distance_error=error_of_mean(gaps),
            disagreement=binary.disagreement - other.disagreement,
        )


def _check(
    model: nn.Module,
    plan: Plan | None,
    mode: str,
    policy: Any,
    overrides: Any,
    teacher: nn.Module | None,
) -> None:
    name = type(model).__name__
    if isinstance(model, PackedNetwork):
        raise ModelError(
            "model",
            name,
            "a packed network cannot be modified",
            "give the network before packing",
        )
    if plan is None:
        if teacher is not None:
            raise ModelError(
                "teacher",
                type(teacher).__name__,
                "it is for a trained 1-bit network, but the model is float",
                "omit it, or give the 1-bit network as the model",
            )
        return
    if mode == "alone":
        raise ModelError(
            "model",
            name,
            "it is binary, but mode 'alone' measures layers in the float network",
            "give the float network, or mode='without'",
        )
    if teacher is None:
        raise ModelError(
            "teacher",
            None,
            "a 1-bit network needs the float network that it was converted from",
            "give it as the teacher",
        )
    if policy is not None or overrides:
        raise PolicyError(
            "policy" if policy is not None else "overrides",
            policy if policy is not None else overrides,
            f"the network was already converted by {plan.policy.name!r}",
            "omit it, or give the float network as the model",
        )


def _check_teacher(plan: Plan, own: Plan) -> None:
    """Reject a teacher that would get a different plan."""
    ours, theirs = ({d.site: (d.action, d.shape) for d in p.layers} for p in (plan, own))
    if ours != theirs:
        site = next(site for site in {**ours, **theirs} if ours.get(site) != theirs.get(site))
        raise ModelError(
            "teacher",
            site,
            "this layer differs from the network that was converted",
            "give the float network that the 1-bit one was converted from",
        )


@torch.no_grad()
def _copy_trained_state(network: nn.Module, trained: nn.Module, site: str) -> None:
    """Copy the state of a trained 1-bit network, except for one layer, which is float here.

    Everything of the same name and shape is copied. The float layer keeps its own weights, and
    so do its norm and activation if the trained network has none there.

    Args:
        network: The network with the float layer; changed in place.
        trained: The trained network, in which that layer is binary.
        site: Dotted name of the layer.
    """
    own = {id(tensor) for tensor in network.get_submodule(site).state_dict(keep_vars=True).values()}
    known = trained.state_dict()
    for name, tensor in network.state_dict(keep_vars=True).items():
        value = known.get(name)
        if id(tensor) not in own and value is not None and value.shape == tensor.shape:
            tensor.copy_(value)
