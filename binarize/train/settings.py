"""The settings of a run as plain values, which a resumed run must share."""

from __future__ import annotations

import dataclasses
import inspect
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["describe_data", "describe_object", "describe_run", "differences", "fingerprint"]

_LARGEST = 10_000
_DATA = ("size", "fit", "normalize", "augment", "classes", "max_depth", "root", "split", "seed")
_MISSING = object()


def describe_run(
    trainer: Any, task: Any, distillation: Any, loader: Any, steps: int
) -> dict[str, Any]:
    """Return all settings that a resumed run must share with this one, as plain values.

    Args:
        trainer: The trainer, for its arguments.
        task: Its task.
        distillation: Its distillation loss.
        loader: The user's training data loader.
        steps: Batches per epoch in this process.
    """
    names = (
        *("epochs", "seed", "lr", "weight_decay", "latent_weight_decay", "warmup", "clip"),
        *("accumulate", "bf16", "compile", "val_every", "balance", "ema", "sam"),
        *("lr_factors", "two_steps", "progressive", "flips"),
    )
    optimizer, scheduler = trainer.factories
    return {
        "task": task.name,
        "steps": steps,
        **{name: getattr(trainer, name) for name in names},
        "optimizer": describe_object(optimizer),
        "scheduler": describe_object(scheduler),
        "batch_size": getattr(loader, "batch_size", None),
        "processes": trainer.accelerator.num_processes,
        "teacher": fingerprint(trainer.teacher),
        "teachers": _fingerprints(trainer.taught),
        "features": None if trainer.teacher is None else describe_object(trainer.features),
        "agreement": None
        if trainer.agreement is None
        else {"weight": trainer.agreement.weight, "base": fingerprint(trainer.agreement.base)},
        "distillation": None if trainer.teacher is None else describe_object(distillation),
        "data": describe_data(loader),
        "loss": describe_object(task),
        **trainer.settings,
    }


def describe_object(value: Any) -> Any:
    """Describe a task or a loss by its class and constructor arguments."""
    if value is None or isinstance(value, str):
        return value
    if inspect.isfunction(value) or inspect.ismethod(value) or inspect.isclass(value):
        return value.__qualname__
    described: dict[str, Any] = {"class": type(value).__qualname__}
    try:
        names = list(inspect.signature(type(value)).parameters)
    except (TypeError, ValueError):
        names = []
    for name in names:
        for attribute in (name, f"_{name}", f"_{name.rpartition('_')[2]}"):
            found = getattr(value, attribute, _MISSING)
            plain = _plain(found)
            if plain is _MISSING and isinstance(found, Mapping):  # several tasks, or their losses
                plain = {key: describe_object(item) for key, item in found.items()}
                described["heads"] = list(plain)
            if plain is not _MISSING:
                described[name] = plain
                break
    return described


def describe_data(loader: Any) -> dict[str, Any]:
    """Describe a loader's data set: class, count and settings."""
    dataset: Any = getattr(loader, "dataset", None)
    described: dict[str, Any] = {"class": type(dataset).__qualname__}
    if hasattr(dataset, "__len__"):
        described["count"] = len(dataset)
    for name in _DATA:
        plain = _plain(getattr(dataset, name, _MISSING))
        if plain is not _MISSING:
            described[name] = plain
    return described


def fingerprint(network: nn.Module | None) -> str | None:
    """Return a short hash of a network's weights."""
    if network is None:
        return None
    sum_ = 0
    for name, value in network.state_dict().items():
        sum_ = zlib.crc32(name.encode(), sum_)
        if isinstance(value, Tensor):
            flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            sum_ = zlib.crc32(flat.numpy().data, sum_)
    return f"weights {sum_:08x}"


def _fingerprints(taught: Mapping[str, Sequence[nn.Module]]) -> Any:
    """Return the teachers' fingerprints: a list, or lists by head."""
    found = {head: [fingerprint(one) for one in some] for head, some in taught.items()}
    return found.get("", found or [])


def differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Return the settings that have changed: name, old and new value.

    Settings that only one side has are not compared, because earlier versions recorded fewer.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return [
            found
            for key in now
            if key in before
            for found in differences(before[key], now[key], f"{name}.{key}" if name else str(key))
        ]
    return [] if before == now else [(name, before, now)]


def _plain(value: Any) -> Any:
    """Convert a value to numbers, strings, lists and dicts; ``_MISSING`` for everything else."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() <= _LARGEST else _MISSING
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        items = {str(key): _plain(item) for key, item in value.items()}
        return _MISSING if _MISSING in items.values() else items
    if isinstance(value, Sequence):
        listed = [_plain(item) for item in value[:_LARGEST]]
        return _MISSING if any(item is _MISSING for item in listed) else listed
    if hasattr(value, "__fspath__"):
        return str(value)
    return _MISSING
