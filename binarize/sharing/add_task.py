"""The public function: a network for another task that shares a base network's bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from binarize.errors import BinarizeError, ModelError
from binarize.file.save import converted_plan
from binarize.file.tasks import fingerprint
from binarize.graph.heads import plan_with_heads, resize_heads
from binarize.graph.model_input import deepcopy_model
from binarize.graph.plan import Plan
from binarize.nn.base import BinaryLayer
from binarize.nn.weight_binarizers import FlippedSign

__all__ = ["add_task"]

_MOST = 0.5


def add_task(
    base: nn.Module,
    head: int | Mapping[str, int] | None = None,
    *,
    flips: float = 0.01,
    shared: Sequence[str] = (),
) -> nn.Module:
    """Make a network for another task that shares the bits of a converted network.

    The result has the base's binary weights, of which training may flip a share; its own
    thresholds, norms, slopes and biases, which start as the base's; and its own output layers.
    Train it like any converted network, then :func:`binarize.save` it with ``task`` into the base's
    file, where it adds its flips and its own numbers only.

    Float and 8-bit weights of other layers are the base's and stay frozen. How flips are found:
    :class:`~binarize.nn.weight_binarizers.flipped_sign.FlippedSign`.

    Args:
        base: A trained network from :func:`binarize.convert` or :func:`binarize.load`; it stays
            unchanged.
        head: Number of output channels of the new task, or numbers by name of the output layer.
            These layers start with random weights. ``None``: as many as the base has.
        flips: Largest share of the binary weights of each layer whose sign may differ from the
            base's, 0 to 0.5. A share f costs at least -f log2 f - (1-f) log2 (1-f) bits per weight
            of the file: 0.08 for 1 %, 0.29 for 5 %.
        shared: Names of modules, such as ``["encoder"]``, in which nothing is the task's own. If
            they come first, they run once for all tasks that are loaded together, see
            :func:`binarize.load`. :class:`~binarize.Trainer` keeps their norms' statistics; in a
            training loop of your own, keep these modules in evaluation mode.

    Returns:
        The network in training mode.

    Raises:
        BinarizeError: ``flips`` or ``head`` is out of range.
        ModelError: The base is not converted, has no such layer, or does not run with that many
            output channels.

    After "Efficient Computation Sharing for Multi-Task Visual Scene Understanding" (Shoouri et al.,
    ICCV 2023), whose weights are floats; here a difference is a flipped bit.
    """
    if isinstance(flips, bool) or not isinstance(flips, int | float) or not 0 <= flips <= _MOST:
        raise BinarizeError("flips", flips, "must be from 0 to 0.5", "write 0.01 for 1 %")
    base, plan = converted_plan(base)
    if any(isinstance(module, FlippedSign) for module in base.modules()):
        raise ModelError(
            "base",
            type(base).__name__,
            "it is a task itself, whose flips are still learned",
            "give its base, or save it to a file of its own and load that",
        )
    _check_shared(base, shared)
    for name, tensor in (*base.named_parameters(), *base.named_buffers()):
        if tensor.device.type == "meta":
            raise ModelError("base", name, "it has no values (meta device)", "load weights first")
    heads = _heads(plan, head)
    task: Any = deepcopy_model(base)
    resize_heads(task, heads)
    _check_runs(base, task, plan, heads)
    task.requires_grad_(True)
    for name in shared:
        task.get_submodule(name).requires_grad_(False)
    for site in heads:
        task.get_submodule(site).requires_grad_(True)
    _share(task, float(flips), set(heads))
    object.__setattr__(task, "binarize_plan", plan_with_heads(plan, heads))
    task.binarize_base = fingerprint(base, plan)
    # It describes the base's task.
    task.binarize_description = None
    return task.train()  # type: ignore[no-any-return]


def _check_shared(base: nn.Module, shared: Sequence[str]) -> None:
    if isinstance(shared, str):
        raise BinarizeError("shared", shared, "must be a list of names", f"write [{shared!r}]")
    known = {path for path, _ in base.named_modules()}
    for name in shared:
        if name not in known:
            raise ModelError(
                "shared", name, "the base has no such module", "name one of its modules"
            )


def _heads(plan: Plan, head: Any) -> dict[str, int]:
    layers = {d.site: d for d in plan.layers if d.action in ("keep", "int8", "binarize")}
    outputs = [site for site, d in layers.items() if "prediction" in d.roles]
    if head is None:
        return {}
    given = head if isinstance(head, Mapping) else dict.fromkeys(outputs, head)
    if not given:
        raise ModelError(
            "head",
            head,
            "the plan names no output layer",
            "name the layer: head={'classifier': 13}",
        )
    for site, channels in given.items():
        if site not in layers:
            raise ModelError(
                "head", site, "the base has no such layer", f"use one of {', '.join(outputs)}"
            )
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise BinarizeError(
                "head", channels, "must be a positive number of channels", "write head=13"
            )
    return dict(given)


def _check_runs(base: nn.Module, task: nn.Module, plan: Plan, heads: Mapping[str, int]) -> None:
    """Raise an error if a layer behind the output layers depends on their number of channels."""
    if not plan.example or not heads:
        return
    reference = next(base.parameters())
    inputs = [reference.new_zeros(shape) for shape in plan.example]
    mode = task.training
    try:
        with torch.no_grad():
            task.eval()(*inputs)
    except Exception as error:
        text = " ".join(str(error).split())[:160]
        raise ModelError(
            "head",
            dict(heads),
            f"the network does not run with them ({type(error).__name__}: {text})",
            "name the output layer alone, behind which nothing depends on its channels",
        ) from error
    finally:
        task.train(mode)


def _share(task: nn.Module, flips: float, heads: set[str]) -> None:
    """Freeze what the task shares with the base, and gate its binary weights."""
    gated: dict[int, tuple[FlippedSign, nn.Parameter]] = {}
    for path, module in task.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or path in heads or not weight.requires_grad:
            continue
        if isinstance(module, BinaryLayer) and flips and _can_flip(module):
            if id(weight) not in gated:
                gate = FlippedSign(module.quantizer, weight, flips)
                gated[id(weight)] = gate, nn.Parameter(gate.latent(weight.detach()))
            module.quantizer, module.weight = gated[id(weight)]
        elif isinstance(module, BinaryLayer) or weight.numel() > max(weight.shape, default=1):
            weight.requires_grad_(False)


def _can_flip(layer: BinaryLayer) -> bool:
    """Check whether signs times constant scales are all there is to the layer's weight."""
    quantizer = layer.quantizer
    state = next(quantizer.parameters(), None), next(quantizer.buffers(), None)
    single = quantizer.bits == 1 and quantizer.copies == 1 and quantizer.popcount_exact
    return single and state == (None, None)
