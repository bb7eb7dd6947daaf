"""Parameter groups, optimizers and schedulers; AdamW and OneCycle by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from binarize.errors import BinarizeError, ModelError

__all__ = [
    "OptimizerFactory",
    "SchedulerFactory",
    "make_optimizer",
    "make_scheduler",
    "parameter_groups",
]

OptimizerFactory = Callable[[list[dict[str, Any]], float], torch.optim.Optimizer]
"""(parameter groups, peak learning rate) → optimizer."""
SchedulerFactory = Callable[[torch.optim.Optimizer, int], Any]
"""(optimizer, number of updates) → scheduler that steps once per update."""


def parameter_groups(
    model: nn.Module,
    weight_decay: float = 1e-2,
    latent_weight_decay: float = 0.0,
    lr_factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Group a network's trainable parameters by weight decay.

    Weights of float layers get ``weight_decay``. Latent weights (the ``weight`` of a module with a
    ``binary_weight`` method) get ``latent_weight_decay``: only their sign is used, and
    decay pulls them towards zero, where signs flip at random (Liu et al. 2021). Nothing else
    decays: norms, biases, thresholds, scales, shifts and PReLU slopes, that is everything with at
    most one number per channel, and everything inside a module's ``binarizer``.

    Args:
        model: The network.
        weight_decay: For weights of float layers.
        latent_weight_decay: For latent weights.
        lr_factors: Learning-rate multipliers for "latent" weights, for "thresholds" (the learned
            parameters of activation binarizers: thresholds, scales, shifts), which then get their
            own group, and for the "rest"; 1 where not given.

    Returns:
        Groups with ``name``, ``params`` and ``weight_decay``, and ``factor`` with ``lr_factors``;
        empty groups are omitted.

    Raises:
        BinarizeError: A factor has an unknown name, or is not positive.
        ModelError: The network has no trainable parameter.
    """
    factors = _factors(lr_factors)
    latent: set[int] = set()
    undecayed: set[int] = set()
    thresholds: set[int] = set()
    for module in model.modules():
        if callable(getattr(module, "binary_weight", None)):
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter):
                latent.add(id(weight))
        binarizer = getattr(module, "binarizer", None)
        if isinstance(binarizer, nn.Module):
            undecayed.update(id(parameter) for parameter in binarizer.parameters())
        for part in (binarizer, getattr(module, "quantizer", None)):
            if lr_factors and isinstance(part, nn.Module):
                thresholds.update(id(parameter) for parameter in part.parameters())
    split: dict[str, list[nn.Parameter]] = {
        "decayed": [],
        "latent": [],
        "plain": [],
        "thresholds": [],
    }
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in thresholds:
            split["thresholds"].append(parameter)
        elif id(parameter) in latent:
            split["latent"].append(parameter)
        elif id(parameter) in undecayed or parameter.numel() == max(parameter.shape, default=1):
            split["plain"].append(parameter)
        else:
            split["decayed"].append(parameter)
    decay = {
        "decayed": weight_decay,
        "latent": latent_weight_decay,
        "plain": 0.0,
        "thresholds": 0.0,
    }
    if lr_factors:
        rest = factors["rest"]
        factors = {name: factors.get(name, rest) for name in split}
    groups: list[dict[str, Any]] = [
        {
            "name": name,
            "params": parameters,
            "weight_decay": decay[name],
            **({"factor": factors[name]} if lr_factors else {}),
        }
        for name, parameters in split.items()
        if parameters
    ]
    if not groups:
        raise ModelError(
            "student",
            type(model).__name__,
            "has no trainable parameter",
            "set requires_grad on the parameters to train",
        )
    return groups


def _factors(given: Mapping[str, float] | None) -> dict[str, float]:
    factors = {"latent": 1.0, "thresholds": 1.0, "rest": 1.0}
    for name, value in (given or {}).items():
        if name not in factors:
            raise BinarizeError(
                "lr_factors", name, "unknown name", f"use one of {', '.join(factors)}"
            )
        if not isinstance(value, int | float) or not value > 0:
            raise BinarizeError(
                f"lr_factors[{name!r}]",
                value,
                "must be positive",
                "freeze parameters to keep them fixed",
            )
        factors[name] = float(value)
    return factors


def make_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    latent_weight_decay: float,
    factory: OptimizerFactory | None = None,
    extra: Sequence[nn.Parameter] = (),
    lr_factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Create the optimizer over :func:`parameter_groups`.

    Args:
        model: The network.
        lr: Learning rate.
        weight_decay: For weights of float layers.
        latent_weight_decay: For latent weights.
        factory: Creates it from the groups and ``lr``; None is AdamW, fused where the device
            supports it.
        extra: Additional parameters without weight decay.
        lr_factors: See :func:`parameter_groups`.
    """
    groups = parameter_groups(model, weight_decay, latent_weight_decay, lr_factors)
    for group in groups if lr_factors else ():
        group["lr"] = lr * group["factor"]
    if extra:
        groups.append({"name": "extra", "params": list(extra), "weight_decay": 0.0})
    if factory is not None:
        return factory(groups, lr)
    kinds = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, lr=lr, fused=kinds <= {"cpu", "cuda"})


def make_scheduler(
    optimizer: torch.optim.Optimizer,
    lr: float,
    steps: int,
    warmup: float,
    factory: SchedulerFactory | None = None,
) -> Any:
    """Create the learning-rate scheduler.

    Args:
        optimizer: The optimizer.
        lr: The peak learning rate.
        steps: Total number of updates.
        warmup: Fraction of them until the peak.
        factory: Creates it from the optimizer and ``steps``; None is OneCycle.
    """
    if factory is not None:
        return factory(optimizer, steps)
    peaks = [lr * group.get("factor", 1.0) for group in optimizer.param_groups]
    peak = lr if all(one == lr for one in peaks) else peaks
    cycle = any(name in optimizer.defaults for name in ("momentum", "betas"))
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=peak, total_steps=steps, pct_start=warmup, cycle_momentum=cycle
    )
