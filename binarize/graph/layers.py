"""Read a float layer: its padding, its effective weight, what prevents a binary layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["effective_weight", "extra_padding", "is_standardized", "obstacle", "scope_name"]

_PLAIN = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)
_TENSORFLOW_SAME = frozenset(
    "Conv2dSame Conv2dSameExport StdConv2dSame ScaledStdConv2dSame Conv2dDynamicSamePadding".split()
)
_STANDARDIZED = frozenset("StdConv2d StdConv2dSame ScaledStdConv2d ScaledStdConv2dSame".split())
_KNOWN = _TENSORFLOW_SAME | _STANDARDIZED | {"Conv2dStaticSamePadding", "Linear"}


def obstacle(layer: Any) -> str | None:
    """Return why a binary layer cannot replace a layer, or ``None`` if it can."""
    base = next((cls for cls in _PLAIN if isinstance(layer, cls)), None)
    if base is None:
        return f"{type(layer).__name__} is not a convolution or linear layer of torch"
    own = type(layer).__name__
    if type(layer).forward is not base.forward and own not in _KNOWN:
        return f"{own} has its own forward"
    if not layer.weight.is_floating_point():
        return f"its weight is {layer.weight.dtype}, not floating point"
    if layer.weight.numel() == 0:
        return "its weight has no elements"
    return None


def is_standardized(layer: nn.Module) -> bool:
    """Check whether a layer's forward subtracts its weight's mean and divides by its deviation."""
    return type(layer).__name__ in _STANDARDIZED


def extra_padding(layer: nn.Module) -> str | Sequence[int] | None:
    """Return the padding that a convolution's own forward adds, as ``pre_padding``."""
    name = type(layer).__name__
    # Some pad in their forward only where the stride makes the padding depend on the size.
    if name in _TENSORFLOW_SAME and getattr(layer, "same_pad", True):
        return "same"
    if name == "Conv2dStaticSamePadding":
        padding = getattr(getattr(layer, "static_padding", None), "padding", None)
        return tuple(padding) if padding is not None else None
    return None


def effective_weight(layer: Any) -> Tensor | nn.Parameter:
    """Return the weight that becomes the latent weight: the parameter itself if there is one."""
    weight = _hooked_weight(layer)
    if is_standardized(layer):
        # The layer subtracts each filter's mean before use; the sign must be that of the result.
        detached = weight.detach()
        return detached - detached.mean(tuple(range(1, detached.dim())), keepdim=True)
    if parametrize.is_parametrized(layer, "weight") or not isinstance(weight, nn.Parameter):
        return weight.detach().clone()
    return weight


def _hooked_weight(layer: Any) -> Tensor:
    """Return the weight, recomputed if a hook recomputes it before each call."""
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            return hook.compute_weight(layer)
        if isinstance(hook, SpectralNorm) and hook.name == "weight":
            return hook.compute_weight(layer, do_power_iteration=False)
    return layer.weight


def scope_name(path: str) -> str:
    """Return the display name of a scope; the network itself has the empty path."""
    return path or "(root)"
