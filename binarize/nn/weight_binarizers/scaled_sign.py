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
        groups: Blocks of dimension 0 with their own scales, for transposed grouped
            convolutions, whose dimension 1 counts the output channels of one group only.

    Deviation: the mean is computed as ``m + mean(|W| - m)`` with ``m`` the slice's first element:
    the same number, and exact to the last bit if all magnitudes of a slice are equal (as in a
    network loaded from its 1-bit file).
    """

    def scale(self, weight: Tensor) -> Tensor:
        """Return the detached scales, compact: (groups, channels) flattened to one dimension."""
        magnitude, over = self.slices(weight.detach().abs())
        first = magnitude
        for d in over:
            first = first.narrow(d, 0, 1)
        first = first.clone()
        # As in self.mean, but reusing the buffer: allocating a second one costs most of the time.
        return (first + magnitude.sub_(first).mean(over, keepdim=True)).flatten()

    def forward(self, weight: Tensor) -> Tensor:
        """Binarize ``weight``; same shape and dtype."""
        return _ScaledSignFunction.apply(weight, self.spread(self.scale(weight), weight))
