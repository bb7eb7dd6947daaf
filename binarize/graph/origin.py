"""How to build a network again that came from timm or segmentation-models-pytorch by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from binarize.errors import FileError

__all__ = ["build_origin", "find_origin"]


def find_origin(model: nn.Module) -> dict[str, Any] | None:
    """Tell how a network is built by name.

    Args:
        model: A float network.

    Returns:
        ``{"library", "name", "arguments"}`` for networks of segmentation-models-pytorch and timm
        whose arguments are known, else ``None``.
    """
    cls = type(model)
    if cls.__module__.startswith("segmentation_models_pytorch."):
        config = getattr(model, "_hub_mixin_config", None)
        if isinstance(config, Mapping) and _is_plain(config):
            arguments = {**config, "encoder_weights": None}
            return {
                "library": "segmentation_models_pytorch",
                "name": cls.__name__,
                "arguments": json.loads(json.dumps(arguments)),
            }
    if cls.__module__.startswith("timm."):
        config = getattr(model, "pretrained_cfg", None)
        name = config.get("architecture") if isinstance(config, Mapping) else None
        if name:
            return _timm_origin(model, str(name))
    return None


def _timm_origin(model: nn.Module, name: str) -> dict[str, Any] | None:
    import timm

    arguments: dict[str, Any] = {}
    if isinstance(getattr(model, "num_classes", None), int):
        arguments["num_classes"] = model.num_classes
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    if channels != 3:
        arguments["in_chans"] = channels
    if type(model).__name__.startswith("Feature"):
        info: Any = getattr(model, "feature_info", None)
        arguments = {**arguments, "features_only": True, "out_indices": list(info.out_indices)}
        arguments.pop("num_classes", None)
    try:
        import torch

        with torch.device("meta"):
            twin = timm.create_model(name, pretrained=False, **arguments)
    except Exception:
        return None
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in twin.state_dict().items()}
    # Arguments that leave no trace in the model (a changed width, say) show as other tensors.
    return {"library": "timm", "name": name, "arguments": arguments} if ours == theirs else None


def _is_plain(config: Mapping[str, Any]) -> bool:
    try:
        json.dumps(dict(config))
    except TypeError:
        return False
    return True


def build_origin(origin: Mapping[str, Any]) -> nn.Module:
    """Build the float network that :func:`find_origin` described, with random weights.

    Raises:
        FileError: The library is not one of the two, or has no such network.
    """
    library, name, arguments = origin["library"], origin["name"], dict(origin["arguments"])
    try:
        if library == "timm":
            import timm

            return timm.create_model(name, pretrained=False, **arguments)
        if library == "segmentation_models_pytorch":
            import segmentation_models_pytorch as smp

            return getattr(smp, name)(**arguments)
    except Exception as error:
        raise FileError(
            "path",
            f"{library}:{name}",
            f"the network cannot be built here ({type(error).__name__}: {error})",
            "give model=... yourself, or install the library's version it was saved with",
        ) from error
    raise FileError(
        "path", library, "the network comes from an unknown library", "give model=... yourself"
    )
