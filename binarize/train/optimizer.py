"""How the weights change: optimizers, schedulers, running average, two steps; and sign flips."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError, ModelError

__all__ = [
    "Flips",
    "OptimizerFactory",
    "SchedulerFactory",
    "TwoSteps",
    "WeightAverage",
    "applied",
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


class WeightAverage:
    """Exponential moving average of parameters and floating buffers, in single precision or wider.

    Update n moves the average by 1 − min(``decay``, (1 + n)/(10 + n)) towards the weights: it
    follows quickly at first, to forget the initial weights. Norm statistics are averaged too,
    because they belong to the weights.

    Args:
        network: The network.
        decay: Fraction of the average that is kept, between 0 and 1.

    Raises:
        BinarizeError: The decay is not between 0 and 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise BinarizeError("ema", decay, "must be between 0 and 1", "use e.g. 0.999")
        self.network = network
        self.decay = decay
        self.updates = 0
        self.average = {name: _wide(value) for name, value in self.live().items()}

    def live(self) -> dict[str, Tensor]:
        """Return the network's tensors that are averaged, by name."""
        state = self.network.state_dict()
        return {name: value for name, value in state.items() if value.is_floating_point()}

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights."""
        self.updates += 1
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in self.live().items():
            self.average[name].lerp_(value.to(self.average[name].dtype), 1 - keep)

    @torch.no_grad()
    def copy_to_network(self) -> None:
        """Copy the averaged weights into the network."""
        for name, value in self.live().items():
            value.copy_(self.average[name])

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"updates": self.updates, "average": self.average}

    def load(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.updates = state["updates"]
        for name, value in state["average"].items():
            self.average[name].copy_(value)


@contextmanager
def applied(average: WeightAverage | None) -> Iterator[None]:
    """Use the averaged weights inside this context, if there is an average."""
    if average is None:
        yield
        return
    kept = {name: value.clone() for name, value in average.live().items()}
    average.copy_to_network()
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in average.live().items():
                value.copy_(kept[name])


def _wide(value: Tensor) -> Tensor:
    value = value.detach()
    return value.float().clone() if value.element_size() < 4 else value.clone()


class Flips:
    """Fraction of binary weights whose sign has changed since the last measurement, per layer.

    If hardly any sign changes, training has converged or the learning rate is too low; many changes
    until the end mean that it is too high. Covers layers with a ``binary_weight`` method.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.layers: dict[str, Any] = {
            name: module
            for name, module in network.named_modules()
            if callable(getattr(module, "binary_weight", None))
        }
        self.bits = {name: _bits(layer) for name, layer in self.layers.items()}

    def measure(self) -> dict[str, Any]:
        """Return ``flip_ratio`` over all layers and ``flips`` per layer, and start over."""
        changed: dict[str, int] = {}
        counts: dict[str, int] = {}
        for name, layer in self.layers.items():
            now = _bits(layer)
            changed[name] = _ones(now ^ self.bits[name].to(now.device))
            counts[name] = _count(layer)
            self.bits[name] = now
        flips = {name: changed[name] / max(1, counts[name]) for name in self.layers}
        ratio = sum(changed.values()) / max(1, sum(counts.values()))
        return {"flip_ratio": ratio, "flips": flips}

    def state(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint."""
        return dict(self.bits)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state of a checkpoint."""
        self.bits.update(state)


@torch.no_grad()
def _bits(layer: Any) -> Tensor:
    """Return the layer's signs: packed eight to a byte if it can, else one byte each."""
    if callable(getattr(layer, "packed_weight", None)):
        bits: Tensor = layer.packed_weight()[0]
        return bits.clone()
    return (layer.weight < 0).to(torch.uint8)


def _count(layer: Any) -> int:
    if hasattr(layer, "weights") and hasattr(layer, "weight_bits"):
        return int(layer.weights) * int(layer.weight_bits)
    return int(layer.weight.numel())


def _ones(bits: Tensor) -> int:
    return sum(int((bits >> place & 1).sum()) for place in range(8))


class TwoSteps:
    """Switch the weights of binary layers from float to binary after a fraction of the training.

    Applies to layers with a method ``use_float_weights(on)``. In the first step latent weights act
    as float weights and decay like those of float layers; in the second they do not decay, because
    only their signs are used (Martinez, Yang, Bulat, Tzimiropoulos 2020, section 4.2; Liu et al.
    2021).

    Args:
        network: The student.
        share: Fraction of the training with float weights, between 0 and 1.
        optimizer: Its group "latent" gets the weight decay of each step.
        weight_decay: For weights of float layers.

    Attributes:
        first: Whether the first step is on.

    Raises:
        BinarizeError: The share is out of range, or no layer can be switched.
    """

    def __init__(
        self,
        network: nn.Module,
        share: float,
        optimizer: torch.optim.Optimizer,
        weight_decay: float,
    ) -> None:
        if not 0 < share < 1:
            raise BinarizeError("two_steps", share, "must be between 0 and 1", "use e.g. 0.5")
        self.layers: list[Any] = [
            m for m in network.modules() if callable(getattr(m, "use_float_weights", None))
        ]
        if not self.layers:
            raise ModelError(
                "student",
                type(network).__name__,
                "has no binary layer for two_steps",
                "convert it first, or omit two_steps",
            )
        self.share = share
        self.optimizer = optimizer
        self.weight_decay = weight_decay
        self.first = False

    def set_progress(self, done: float) -> None:
        """Switch if it is due at training progress ``done``."""
        first = done < self.share
        if first != self.first:
            self._switch(first)
        for group in self.optimizer.param_groups:
            if group.get("name") == "latent":
                group["weight_decay"] = self.weight_decay if first else 0.0

    def _switch(self, first: bool) -> None:
        self.first = first
        for layer in self.layers:
            layer.use_float_weights(first)

    def end(self) -> None:
        """Switch to binary weights, wherever training has ended."""
        self._switch(False)
