"""``--distill``: the distillation losses from KEY=VALUE settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from binarize.cli.networks import nearest
from binarize.errors import BinarizeError

__all__ = ["distillation_losses"]

_FEATURES = {
    "features": "features",
    "attention": "attention",
    "layers": "layers",
    "feature_schedule": "schedule",
}
# Arguments of the losses that the task decides.
_HIDDEN = ("ignore_index", "multilabel")


def distillation_losses(
    task: str, given: Sequence[tuple[str, Any]], recipe: Mapping[str, Mapping[str, Any]]
) -> tuple[Any, Any]:
    """Return the loss between predictions and that between feature maps, for the Trainer.

    Args:
        task: The task, or several joined by "+".
        given: The settings: "KEY" for every task that has it, "TASK.KEY" for one of several.
        recipe: The recipe's settings by task, which they override.

    Returns:
        The first is a mapping by head for several tasks; None leaves a loss to the recipe.

    Raises:
        BinarizeError: There is no setting of a name, or a value is invalid.
    """
    features = _features(
        {_FEATURES[key]: value for key, value in given if key in _FEATURES},
        recipe.get("features", {}),
    )
    names = task.split("+")
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    known = {name: _settings(name) for name in names}
    for key, value in given:
        if key in _FEATURES:
            continue
        head, dot, setting = key.rpartition(".")
        chosen = names if not dot else [name for name in names if name == head]
        chosen = [name for name in chosen if setting in known[name]]
        if not chosen:
            shown = list(dict.fromkeys(one for some in known.values() for one in some))
            if len(names) > 1:
                shown += [f"{name}.{one}" for name in names for one in known[name]]
            near = nearest(key, [*shown, *_FEATURES])
            raise BinarizeError("distill", key, f"{task} has no such setting", near)
        for name in chosen:
            own[name][setting] = value
    losses = {
        name: _loss(name, settings, recipe.get(name, {}))
        for name, settings in own.items()
        if settings
    }
    return (losses or None) if len(names) > 1 else losses.get(task), features


def _settings(task: str) -> list[str]:
    """Return the names of a task's settings."""
    return [name for name in inspect.signature(_class(task)).parameters if name not in _HIDDEN]


def _class(task: str) -> Any:
    from binarize.train import open_task

    return type(open_task(task, num_classes=2).distillation())


def _loss(task: str, settings: Mapping[str, Any], usual: Mapping[str, Any]) -> Any:
    several = {"multilabel": True} if task == "multilabel" else {}
    try:
        return _class(task)(**{**usual, **several, **settings})
    except TypeError as error:
        raise BinarizeError(
            "distill", dict(settings), f"a value has the wrong type ({error})", "give a number"
        ) from error


def _features(asked: Mapping[str, Any], usual: Mapping[str, Any]) -> Any:
    from binarize.train import FeatureDistillation

    if not asked:
        return None
    base = usual or {"features": 1.0 if "layers" in asked and "attention" not in asked else 0.0}
    try:
        return FeatureDistillation(**{**base, **asked})
    except (TypeError, AttributeError) as error:
        raise BinarizeError(
            "distill", asked, f"a value has the wrong type ({error})", "give a number"
        ) from error
