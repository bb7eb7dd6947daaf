"""Fit a converted network to the float network it came from, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from binarize.calibration.equations import LARGEST, Equations, as_columns, as_weight, input_rows
from binarize.calibration.fits import Moments, Slopes, set_norm
from binarize.calibration.inputs import read_batches
from binarize.calibration.pairs import Pair, find_pairs
from binarize.calibration.runs import Call, Runs, as_taken
from binarize.errors import ModelError
from binarize.graph.inputs import run_example
from binarize.graph.model_input import unwrap_model
from binarize.graph.plan import Plan
from binarize.nn.base import BinaryLayer
from binarize.nn.input_range import InputRange
from binarize.train.norms import training_flags

__all__ = ["calibrate"]

# How strongly fitted weights are drawn to the float ones, see Equations.solve: those of which only
# the signs count, and others.
_PULL, _LOOSE_PULL = 0.8, 0.1


@torch.no_grad()
def calibrate(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    weights: bool = True,
    activations: bool | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> nn.Module:
    r"""Fit a converted network to its float network, without training.

    In the order of the forward pass, each part is fitted by least squares to the float network's
    value at the same place, on a few images; its inputs are those of the network as far as it is
    fitted already. Nothing is labelled, and no gradient is computed.

    - The **latent weight** of a binary layer becomes the weight whose sums over the binarized
      inputs match the float network's value before the activation best, less what the bypass
      carries. It is drawn to the float weight, and scaled to its magnitude. Its signs, which are
      what counts, are then improved by coordinate descent.
    - The **norm** of a binary layer gets the statistics of these sums, and the gain and bias with
      which they match best. So do batch norms outside of binary layers.
    - The **slopes** of an activation that the conversion put in are fitted to the float network's
      activation: those of the shifted PReLU and what it adds, and Maxout's. Values then hardly go
      below zero, as behind a ReLU, and a constant threshold would see one sign; so this is done
      where all thresholds follow the mean of their input.
    - The **ranges** of 8-bit layers are observed.

    Only the norm is fitted where a layer has several latent weights or bits per weight (policies
    ``groupnet``, ``cbnn``, ``lqnet``), where layers share a weight, and where an output has more
    than 12,288 inputs. What only training calls stays as it is. A module that is called several
    times is fitted again at every call, to all calls so far.

    Calibrate before training, or instead of it; a trained network loses its training. Memory is
    that of a forward pass of both networks on all images, which wait for each other at every layer.

    Args:
        student: The network that :func:`binarize.convert` made; changed in place.
        teacher: The float network it was made of; unchanged.
        batches: What the networks are run on, read once and kept in memory; some 32 images of the
            kind the network is for. Each is an image tensor, a tuple that starts with the network's
            inputs, or a dict with "image"; another dict has named inputs.
        weights: Fit latent weights; without them it is faster, and much less is won.
        activations: Fit slopes; None: where all thresholds follow the mean of their input.
        on_step: Called with (name, parts done, parts in total) after each part.

    Returns:
        The student, training flags as they were.

    Raises:
        ModelError: The student was not converted, or the teacher is not the network it came from.
        DataError: There is no batch, or it does not fit the network. The student is then as it was.
    """
    network, reference = unwrap_model(student), unwrap_model(teacher)
    plan = getattr(network, "binarize_plan", None)
    if not isinstance(plan, Plan) or not any(d.action != "keep" for d in plan.layers):
        raise ModelError(
            "student",
            type(network).__name__,
            "is not a converted network",
            "give the result of binarize.convert",
        )
    inputs = read_batches(batches, plan)
    args, kwargs = as_taken(inputs[0], reference)
    slopes = _follows_mean(network) if activations is None else activations
    with training_flags(network, reference), _restored_on_error(network):
        trace = run_example(reference, kwargs or args)
        pairs = [
            pair
            for pair in find_pairs(network, reference, plan, trace)
            if pair.kind != "activation" or (slopes and Slopes.fits(pair.module))
        ]
        network.eval()
        reference.eval()
        steps = [(order, pair, i) for pair in pairs for i, order in enumerate(pair.orders)]
        steps.sort(key=lambda step: step[0])
        runs = Runs(network, reference, inputs, pairs)
        earlier: dict[str, list[Call]] = defaultdict(list)
        try:
            for number, (_, pair, index) in enumerate(steps, start=1):
                calls = runs.calls(pair, index)
                _fit(pair, earlier[pair.name] + calls, weights=weights, activations=slopes)
                if index + 1 < len(pair.orders):
                    earlier[pair.name] += [call.kept() for call in calls]
                else:
                    del earlier[pair.name]
                if on_step is not None:
                    on_step(pair.name, number, len(steps))
        finally:
            runs.close()
    return student


def _follows_mean(network: nn.Module) -> bool:
    units = (module for module in network.modules() if isinstance(module, BinaryLayer))
    return all(unit.binarizer.follows_mean for unit in units)


def _fit(pair: Pair, calls: list[Call], *, weights: bool, activations: bool) -> None:
    """Fit one part of the network to its calls."""
    if pair.kind == "range":
        _observe(pair.module, calls)
    elif pair.kind == "activation":
        slopes = Slopes(pair.module)
        for call in calls:
            slopes.add(call.rows(call.input), call.rows(call.value))
        slopes.apply()
    elif pair.kind == "norm":
        moments = Moments()
        for call in calls:
            moments.add(call.rows(call.input), call.rows(call.value))
        set_norm(pair.module, moments.result(), moments.count)
    else:
        start = None if pair.weight is None else as_columns(pair.module, pair.weight)
        if weights and start is not None and start.shape[1] <= LARGEST:
            _fit_weight(pair.module, calls, start)
        else:
            _fit_sums(pair.module, calls)
        if activations and Slopes.fits(pair.module.inner):
            slopes = Slopes(pair.module.inner)
            for call in calls:
                inside = call.inside()
                slopes.add(call.rows(inside.inner), call.rows(call.wanted(inside)))
            slopes.apply()


def _observe(seen: InputRange, calls: list[Call]) -> None:
    """Set a range to the average of all calls' extremes."""
    momentum = seen.momentum
    seen.reset_running_stats()
    seen.momentum = None
    for call in calls:
        seen.observe(call.input)
    seen.momentum = momentum


def _fit_sums(unit: Any, calls: list[Call]) -> None:
    """Fit a unit's norm to its sums as they are."""
    moments = Moments()
    for call in calls:
        inside = call.inside()
        sums = inside.sums if isinstance(unit, nn.Linear) else call.rows(inside.sums)
        moments.add(sums, call.rows(call.wanted(inside)))
    set_norm(unit.norm, moments.result(), moments.count)


def _fit_weight(unit: Any, calls: list[Call], start: Tensor) -> None:
    """Fit a unit's latent weight, and then its norm to the sums of the binary one."""
    equations = Equations(start)
    groups, _, outputs = start.shape
    for call in calls:
        wanted = call.wanted(call.inside())
        for samples, rows in input_rows(unit, unit.binarizer(call.input), wanted.shape[2:]):
            values = call.rows(wanted[samples])
            equations.add(rows, values.unflatten(1, (groups, outputs)).transpose(0, 1))
    equations.finish()
    if _keeps_signs(unit):
        fitted = equations.solve(start, _PULL)
        signs = equations.signs(fitted, start, _PULL)
        fitted = signs * fitted.abs().clamp(min=torch.finfo(fitted.dtype).tiny)
    else:
        fitted = equations.solve(start, _LOOSE_PULL)
    size = fitted.abs().mean(1, keepdim=True)
    fitted *= start.double().abs().mean(1, keepdim=True) / torch.where(size > 0, size, 1.0)
    unit.weight.copy_(as_weight(unit, torch.where(size > 0, fitted, start.double())))
    with training_flags(unit.quantizer):
        unit.quantizer.train()  # its statistics follow the weight
        unit.quantizer(unit.weight)
    used = as_columns(unit, unit.quantizer(unit.weight))
    set_norm(unit.norm, equations.moments(used), equations.count)


def _keeps_signs(unit: Any) -> bool:
    """Check whether a unit's weight is the latent weight's signs times one factor per output.

    Binarizers that shift or balance weights change some signs of random ones.
    """
    quantizer = unit.quantizer
    if not (quantizer.popcount_exact and unit.popcount_exact):
        return False
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(unit.weight.shape, generator=generator).to(unit.weight)
    return torch.equal(quantizer.signs(latent), torch.where(latent < 0, -1.0, 1.0).to(latent))


@contextmanager
def _restored_on_error(network: nn.Module) -> Iterator[None]:
    """Put back every parameter and buffer if something goes wrong."""
    tensors = {id(x): x for x in (*network.parameters(), *network.buffers())}
    saved = [(x, x.detach().clone()) for x in tensors.values()]
    try:
        yield
    except BaseException:
        for tensor, value in saved:
            tensor.copy_(value)
        raise
