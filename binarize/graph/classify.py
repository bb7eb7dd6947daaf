"""Classify the torch functions and modules of a trace by their role in the signal flow."""

from __future__ import annotations

from torch import nn

from binarize.nn import BinaryLayer, ShiftedPReLU, ShortcutBypass

__all__ = ["function_kind", "is_batch_norm", "module_kind", "normal_name"]

_ACTIVATIONS = frozenset(
    "relu relu6 leaky_relu prelu rrelu elu celu selu gelu silu swish mish hardswish hard_swish "
    "hard_mish quick_gelu hardtanh".split()
)
_GATES = frozenset("sigmoid hardsigmoid hard_sigmoid tanh softmax softmin logsigmoid".split())
_SHAPES = frozenset(
    "view reshape permute transpose flatten unflatten squeeze unsqueeze contiguous getitem narrow "
    "chunk split tensor_split split_with_sizes unbind pad roll clone to float half bfloat16 double "
    "type type_as detach movedim moveaxis swapaxes swapdims pixel_unshuffle channel_shuffle expand "
    "expand_as view_as reshape_as get t unfold select index_select flip identity alias".split()
)
_POOLS = frozenset("mean".split())
_UPS = frozenset("interpolate upsample pixel_shuffle grid_sample fold".split())
# Assignments too: they join the existing tensor and the part that is written.
_CATS = frozenset(
    "cat concat concatenate stack hstack vstack dstack setitem copy index_copy index_put scatter "
    "masked_scatter index_add scatter_add put slice_scatter select_scatter".split()
)
_PRODUCTS = frozenset("matmul bmm mm baddbmm einsum scaled_dot_product_attention".split())
_LAYERS = frozenset("conv1d conv2d conv3d conv_transpose2d linear conv_transpose1d".split())

_ACTIVATION_CLASSES = frozenset(
    "ReLU ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU GELU SiLU Swish Mish Hardswish HardSwish "
    "HardMish QuickGELU GELUTanh Hardtanh SwishMe MishMe HardSwishMe HardMishMe SwishJit MishJit "
    "HardSwishJit HardMishJit MemoryEfficientSwish QuickGelu GeluTanh".split()
)
_LAYER_CLASSES = (
    BinaryLayer,
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
)


_SYNONYMS = {
    "multiply": "mul",
    "subtract": "sub",
    "truediv": "div",
    "itruediv": "div",
    "true_divide": "div",
    "divide": "div",
}


def normal_name(name: str) -> str:
    """Normalize the name of an operation: ``__iadd__``, ``add_`` and ``iadd`` become ``add``."""
    if name == "_native_multi_head_attention":
        return "scaled_dot_product_attention"
    name = name.strip("_")
    for base in ("add", "mul", "sub", "matmul"):
        if name in (f"i{base}", f"r{base}"):
            return base
    return _SYNONYMS.get(name, name)


def function_kind(name: str) -> str:
    """Return the kind of a torch function by its normalized name; ``"other"`` if irrelevant."""
    if "dropout" in name:
        return "drop"
    if "pool" in name or name in _POOLS:
        return "pool"
    for kind, names in (
        ("activation", _ACTIVATIONS),
        ("gate", _GATES),
        ("shape", _SHAPES),
        ("cat", _CATS),
        ("product", _PRODUCTS),
        ("function-layer", _LAYERS),
    ):
        if name in names:
            return kind
    if name in _UPS or name.startswith("upsample"):
        return "up"
    if name in ("add", "lerp"):
        return "add"
    if name in ("mul", "div"):
        return "mul"
    if name.endswith("_norm"):
        return "norm"
    return "other"


def module_kind(module: nn.Module) -> str | None:
    """Return the kind of a module that is traced as one call, ``None`` if its forward is traced."""
    if isinstance(module, _LAYER_CLASSES):
        return "layer"
    if isinstance(module, _NORMS):
        return "norm"
    if isinstance(module, nn.MultiheadAttention):
        return "product"
    if isinstance(module, ShiftedPReLU) or type(module).__name__ in _ACTIVATION_CLASSES:
        return "activation"
    if isinstance(module, ShortcutBypass):
        return "pool"
    return None


def is_batch_norm(module: nn.Module) -> bool:
    """Check whether a norm can become a binary layer's own norm."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
