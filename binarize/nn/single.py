"""Modules whose numbers stay in single precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["Single"]


class Single(nn.Module):
    """Keeps its numbers in float32, as the kernels require, whatever the network's dtype."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def keep_type(value: Tensor) -> Tensor:
            result = fn(value)
            return result if result.dtype == value.dtype else value.to(result.device)

        return super()._apply(keep_type, recurse)

    def hold(self, **values: Tensor | None) -> None:
        """Register copies of tensors as buffers."""
        for name, value in values.items():
            if value is not None:
                value = value.detach().clone()
                value = value.float() if value.is_floating_point() else value
            self.register_buffer(name, value)
