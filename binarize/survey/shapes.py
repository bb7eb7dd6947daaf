"""Shapes without values at the price of C++: for a process that does nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

__all__ = ["prefer_native_shapes"]

# A library that is collected takes its registrations along.
_kept: list[torch.library.Library] = []


def prefer_native_shapes() -> None:
    """Let torch find shapes on the meta device by its own C++ where it has both.

    Over many of its C++ kernels for that device torch puts functions in Python, which are there
    for sizes that are symbols and take up to a millisecond for a single addition. Here all sizes
    are numbers. It holds for the whole process: not for one in which anybody else works. A
    version of torch that is built otherwise stays as it is.
    """
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
        # What makes a tensor like another has C++ for all devices in one.
        if not (name.endswith("_like") and has_kernel(name, "CompositeExplicitAutograd")):
            own.impl(op, _SHORTER.get(name, function))


# What networks ask for most and has no such C++.


def _relu(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return condition * x + y  # the same sizes, and the same type


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
