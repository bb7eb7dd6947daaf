"""Rebuild a network of timm, segmentation-models-pytorch or transformers by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from binarize.errors import BinarizeError, FileError
from binarize.extras import naming_the_extra
from binarize.graph.model_input import stated

__all__ = ["build_origin", "find_origin"]


def find_origin(model: nn.Module) -> dict[str, Any] | None:
    """Find out how to build a network by name.

    Args:
        model: A float network.

    Returns:
        ``{"library", "name", "arguments"}`` for networks of segmentation-models-pytorch, timm and
        transformers that can be rebuilt from their known arguments, else ``None``.
    """
    origin = _claimed_origin(model)
    if origin is None:
        return None
    twin = _twin(origin)
    if twin is None:
        return None
    # Arguments that the network does not keep (a stride, an activation) and manual changes show in
    # the tensors or in the modules' representation.
    ours = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in twin.state_dict().items()}
    same = ours == theirs and str(model) == str(twin) and _attentions(model) == _attentions(twin)
    return origin if same else None


def _attentions(model: nn.Module) -> list[Any]:
    configs = (stated(module, "config") for module in model.modules())
    return [getattr(config, "_attn_implementation", None) for config in configs]


def _twin(origin: Mapping[str, Any]) -> nn.Module | None:
    # Without storage if the constructor allows it.
    for device in ("meta", "cpu"):
        try:
            with torch.device(device), torch.random.fork_rng(devices=[]):
                return build_origin(origin)
        except Exception:
            continue
    return None


def _claimed_origin(model: nn.Module) -> dict[str, Any] | None:
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
            return {"library": "timm", "name": str(name), "arguments": _timm_arguments(model)}
    if cls.__module__.startswith("transformers."):
        return _transformers_origin(model)
    return None


def _transformers_origin(model: nn.Module) -> dict[str, Any] | None:
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_json_string"):
        return None
    arguments = json.loads(config.to_json_string(use_diff=False))
    # The attention implementation decides the last bits and is not in the config; a backbone may
    # use another one. The file holds the backbone's weights, so nothing needs to be downloaded.
    inner = {key: getattr(config, key, None) for key in getattr(config, "sub_configs", {})}
    arguments["attn_implementation"] = {
        "": config._attn_implementation,
        **{key: value._attn_implementation for key, value in inner.items() if value is not None},
    }
    if "use_pretrained_backbone" in arguments:
        arguments["use_pretrained_backbone"] = False
    return {"library": "transformers", "name": type(model).__name__, "arguments": arguments}


def _timm_arguments(model: nn.Module) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    name = type(model).__name__
    if name.startswith("Feature") or name.endswith("Features"):
        info: Any = getattr(model, "feature_info", None)
        arguments = {"features_only": True, "out_indices": list(info.out_indices)}
    elif isinstance(getattr(model, "num_classes", None), int):
        arguments["num_classes"] = model.num_classes
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    if channels != 3:
        arguments["in_chans"] = channels
    return arguments


def _is_plain(config: Mapping[str, Any]) -> bool:
    try:
        json.dumps(dict(config))
    except TypeError:
        return False
    return True


def build_origin(origin: Mapping[str, Any]) -> nn.Module:
    """Build the float network that :func:`find_origin` described, with random weights.

    Raises:
        FileError: The library is not one of the three, or does not have the network.
        BinarizeError: The library is not installed.
    """
    library, name, arguments = origin["library"], origin["name"], dict(origin["arguments"])
    try:
        if library == "timm":
            with naming_the_extra():
                import timm

            return timm.create_model(name, pretrained=False, **arguments)
        if library == "segmentation_models_pytorch":
            with naming_the_extra():
                import segmentation_models_pytorch as smp

            return getattr(smp, name)(**arguments)
        if library == "transformers":
            import transformers

            cls = getattr(transformers, name)
            return cls(cls.config_class.from_dict(arguments))  # type: ignore[no-any-return]
    except BinarizeError:
        raise
    except Exception as error:
        raise FileError(
            "path",
            f"{library}:{name}",
            f"the network cannot be built here ({type(error).__name__}: {error})",
            "give model=..., or install the version of the library that it was saved with",
        ) from error
    raise FileError("path", library, "the network comes from an unknown library", "give model=...")
