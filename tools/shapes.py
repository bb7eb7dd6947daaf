"""Fast shape inference in C++ on the meta device, for dedicated processes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

__all__ = ["prefer_native_shapes"]

# Registrations disappear when their library object is collected.
_kept: list[torch.library.Library] = []


def prefer_native_shapes() -> None:
    """Make torch use its C++ shape functions on the meta device where it also has Python ones.

    torch overrides many of its C++ meta kernels by Python functions, which support symbolic sizes
    and take up to a millisecond for a single addition. Here all sizes are numbers. This affects
    the whole process, so use it only in a dedicated one. Versions of torch that work differently
    are left unchanged.
    """
    if not _kept:
        with suppress(ImportError, AttributeError):
            _uncover()


def _uncover() -> None:
    from torch import _meta_registrations as registrations
    from torch._decomp import global_decomposition_table as tables

    covering: Any = registrations._meta_lib_dont_use_me_use_register_meta
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    functions: dict[Any, Any] = {}
    for table in ("meta", "post_autograd", "pre_autograd"):
        functions = {**tables[table], **functions}
    covered = {str(name) for name in covering._op_impls}
    covering._destroy()
    own = torch.library.Library("aten", "IMPL", "Meta")
    _kept.append(own)
    for op, function in functions.items():
        name = op.name()
        if f"{name.replace('::', '/', 1)}/Meta" not in covered or has_kernel(name, "Meta"):
            continue
        # Factory functions like empty_like have one C++ kernel for all devices.
        if not (name.endswith("_like") and has_kernel(name, "CompositeExplicitAutograd")):
            own.impl(op, _SHORTER.get(name, function))


# The most frequent operators without such C++ kernels.


def _relu(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return condition * x + y  # same shape and dtype


def _batch_norm(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    training = rest[4]
    width = x.shape[1] if training else 0
    return torch.empty_like(x), x.new_empty(width), x.new_empty(width)


def _batch_norm_backward(grad: Tensor, x: Tensor, *_rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _layer_norm(x: Tensor, shape: list[int], *_rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    each = (*x.shape[: x.dim() - len(shape)], *[1] * len(shape))
    return torch.empty_like(x), x.new_empty(each), x.new_empty(each)


_SHORTER: dict[str, Callable[..., Any]] = {
    "aten::relu": _relu,
    "aten::where.self": _where,
    "aten::native_batch_norm": _batch_norm,
    "aten::native_batch_norm_backward": _batch_norm_backward,
    "aten::native_layer_norm": _layer_norm,
}
