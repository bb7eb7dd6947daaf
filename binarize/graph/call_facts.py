"""Properties of a single call besides its kind: dimension order, scale factor, multiply-adds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["factor_of", "macs_of", "order_of"]


def order_of(func: Any, args: Any, kwargs: Any) -> tuple[int, ...]:
    """Return the source of each dimension of a permuted tensor.

    The function is called on a meta tensor of sizes 0, 1, 2, ...

    Args:
        func: The permuting function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    if not args or not isinstance(args[0], Tensor):
        return ()
    probe = torch.empty(tuple(range(args[0].dim())), device="meta")
    return tuple(func(probe, *args[1:], **kwargs).shape)


def factor_of(name: str, args: Any, kwargs: Any) -> float | None:
    """Return the number by which a product or quotient of a tensor and a number scales the tensor.

    Args:
        name: ``"mul"`` or the name of a division.
        args: The positional arguments.
        kwargs: The keyword arguments.

    Returns:
        The factor, or ``None`` if there is no such number.
    """
    operands = [*args, *kwargs.values()]
    numbers = [x for x in operands if isinstance(x, int | float) and not isinstance(x, bool)]
    if len(operands) != 2 or len(numbers) != 1:
        return None
    if name == "mul":
        return float(numbers[0])
    return 1.0 / numbers[0] if numbers[0] and operands[1] is numbers[0] else None


def macs_of(kind: str, name: str, tensors: list[Tensor], results: list[Tensor]) -> int | None:
    """Return the multiply-accumulates of a call without a layer of its own, ``None`` if unknown.

    Args:
        kind: See :mod:`binarize.graph.classify`.
        name: Normalized name of the function.
        tensors: Its tensor operands.
        results: Its results.
    """
    if kind == "product":
        if name in ("matmul", "bmm", "mm", "baddbmm") and len(tensors) >= 2 and results:
            return results[0].numel() * tensors[-1 if name == "baddbmm" else 0].shape[-1]
        if name == "scaled_dot_product_attention" and len(tensors) >= 3:
            query, key, value = tensors[:3]
            pairs = query.numel() // query.shape[-1] * key.shape[-2]
            return pairs * (query.shape[-1] + value.shape[-1])
        return None
    if kind == "function-layer" or name == "deform_conv2d":
        if len(tensors) < 2 or not results:
            return None
        weight = tensors[1]
        if "transpose" in name:
            return tensors[0].numel() * weight[0].numel()
        return results[0].numel() * weight[0].numel()
    return 0
