"""The observed range of a layer's input, and fake quantization to 256 levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from binarize.ops.rounding import LEVELS, round_activations

__all__ = ["InputRange", "affine"]


class InputRange(nn.Module):
    r"""Observes the range of a tensor and rounds it to 256 levels.

    .. math::
        s = \frac{h - l}{255}, \qquad z = \operatorname{round}(-l / s), \qquad
        \hat x = s \, (\operatorname{clip}(\operatorname{round}(x / s) + z, 0, 255) - z)

    The limits :math:`l \le 0 \le h` are running averages of each batch's extremes in training mode,
    like a batch norm's statistics, and constant in evaluation mode. Zero, the padding value, is
    therefore a level. The gradient is 1 where x is not clipped, else 0 (straight-through).

    Attributes:
        limits: (2), l and h.
        num_batches_tracked: How many batches were observed. While it is 0, each batch is rounded
                in its own range.
        momentum: Weight of a new batch; ``None`` averages all batches.
    """

    limits: Tensor
    num_batches_tracked: Tensor
    track_running_stats = True
    momentum: float | None = 0.1

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("limits", torch.zeros(2))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def reset_running_stats(self) -> None:
        """Discard the observed range."""
        self.limits.zero_()
        self.num_batches_tracked.zero_()

    @property
    def is_observed(self) -> bool:
        """Check whether there is a range; assumed for tensors without values."""
        count = self.num_batches_tracked
        if torch.compiler.is_compiling() or count.is_meta or isinstance(count, FakeTensor):
            return True
        return bool(count > 0)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Update the limits with a batch; an empty one changes nothing."""
        if not x.numel():
            return
        new = torch.stack(x.detach().aminmax()).to(self.limits)
        new = torch.stack((new[0].clamp(max=0), new[1].clamp(min=0)))
        self.num_batches_tracked.add_(1)
        share = 1 / self.num_batches_tracked.to(new)
        if self.momentum is not None:
            share = torch.maximum(share, torch.full_like(share, self.momentum))
            share = torch.where(self.num_batches_tracked == 1, torch.ones_like(share), share)
        self.limits.lerp_(new, share)

    def forward(self, x: Tensor) -> Tensor:
        """Round ``x``; in training mode, observe its range first."""
        return round_activations(x, *self.terms(x)) if x.numel() else x

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return step and code of zero to round ``x`` with; observe its range as for a call.

        Args:
            x: The tensor, which has values.
        """
        if self.training:
            self.observe(x)
        limits = self.limits
        if not self.is_observed:
            low, high = x.detach().aminmax()
            limits = torch.stack((low.clamp(max=0), high.clamp(min=0)))
        return affine(limits.float())

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}"


def affine(limits: Tensor) -> tuple[Tensor, Tensor]:
    """Return step and code of zero for limits (2), l and h; 0-D, float32 and int32."""
    low, high = limits.float().unbind()
    # An empty range: any step will do.
    scale = (high - low).clamp(min=torch.finfo(torch.float32).tiny * 1024) / LEVELS
    zero = (-low / scale).round().clamp(0, LEVELS).to(torch.int32)
    return scale, zero
