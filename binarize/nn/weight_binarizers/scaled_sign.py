"""Scaled signs: XNOR-Net's paper, Bi-Real Net, ReActNet, BiDense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from binarize.nn.weight_binarizers.base import WeightBinarizer
from binarize.ops.sign import clip_gradient

__all__ = ["ScaledSign"]


class _ScaledSignFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.copysign(scale, weight + 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        return clip_gradient(grad, weight), None


class ScaledSign(WeightBinarizer):
    r"""Binary weights with one scale per slice: :math:`\overline{|W_o|} \operatorname{sign}(W_o)`.

    As in XNOR-Net, Bi-Real Net and BiDense. The scale is detached. Surrogate gradient on the latent
    weight: 1 where ``|W| <= 1``, else 0, not multiplied by the scale.

    Args:
        dim: The weight's dimension that the scale runs along: 0 for convolution and linear weights
            (out, in, ...) to give a scale per output channel; for transposed weights
            (in, out / groups, ...) 1 gives a scale per output channel, 0 one per input channel.
        groups: Blocks of dimension 0 with a scale of their own, for transposed grouped
            convolutions, whose dimension 1 counts the output channels of one group only.

    Deviation: the mean is taken as ``m + mean(|W| - m)`` with ``m`` the slice's first element. It
    is the same number, and where all magnitudes of a slice agree (a network loaded from its 1-bit
    file) it is that magnitude to the last bit.
    """

    def scale(self, weight: Tensor) -> Tensor:
        """Detached scales, compact: (groups, channels) flattened to one dimension."""
        magnitude, over = self.slices(weight.detach().abs())
        first = magnitude
        for d in over:
            first = first.narrow(d, 0, 1)
        first = first.clone()
        # As in self.mean, but in the buffer that is there: a second one costs most of the time.
        return (first + magnitude.sub_(first).mean(over, keepdim=True)).flatten()

    def forward(self, weight: Tensor) -> Tensor:
        """Binarize ``weight``; same shape and dtype."""
        return _ScaledSignFunction.apply(weight, self.spread(self.scale(weight), weight))
