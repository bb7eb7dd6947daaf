"""XNOR-Net's weights: centred, clipped, and scaled by their mean magnitude."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from binarize.nn.weight_binarizers.base import WeightBinarizer, centred_signs
from binarize.ops.sign import clip_gradient
from binarize.ops.straight_through import clip, hard_sign

__all__ = ["ChannelCentredSign"]


class _ScaledSign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.count = count
        return hard_sign(weight) * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        weight, scale = ctx.saved_tensors
        return grad / ctx.count + scale * clip_gradient(grad, weight), None, None


class ChannelCentredSign(WeightBinarizer):
    r""":math:`\overline{|\tilde W_o|} \operatorname{sign}(\tilde W)` of centered weights.

    With :math:`\tilde W = \operatorname{clip}(W - \overline{W}, -1, 1)`. Rastegari et al.,
    XNOR-Net, Eqs. 6 and 11; centering and clipping are those of the released code. The center is
    the mean over the input channels, for each output channel and position of the kernel (over the
    one of the first two dimensions that slices do not run along); with a single input channel, as
    in depthwise convolutions, it is 0. Surrogate gradient on the latent weight:
    :math:`1 / n + \overline{|\tilde W_o|}` where clipping changes nothing, else
    :math:`1 / n`, with n the number of weights of a slice.

    State: the buffer ``scales``, one number per slice.

    Deviations: the latent weight itself is not centered and clipped, only the effective one; the
    gradient treats the center as a constant. sign(0) is +1.
    """

    scales: Tensor

    def start(self, weight: Tensor) -> None:
        self.register_buffer("scales", self._fresh(weight.detach()))

    def centred(self, weight: Tensor) -> Tensor:
        """Return the weight, centered and clipped."""
        return clip(weight - self._centre(weight.detach()), -1, 1)

    def _centre(self, weight: Tensor) -> Tensor:
        grouped, _ = self.slices(weight)
        across = 2 - self.dim
        if grouped.shape[across] == 1:
            return torch.zeros_like(weight)
        first = grouped.narrow(across, 0, 1)
        mean = first + (grouped - first).mean(across, keepdim=True)
        return mean.expand_as(grouped).reshape(weight.shape)

    def _fresh(self, weight: Tensor) -> Tensor:
        return self.mean(self.centred(weight).abs())

    def scale(self, weight: Tensor) -> Tensor:
        return self.scales

    def signs(self, weight: Tensor) -> Tensor:
        return hard_sign(self.centred(weight))

    def stored_scale(self, weight: Tensor) -> Tensor:
        return weight.new_empty(0)

    def unpack(self, bits: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        signs = super().unpack(bits, torch.ones_like(self.scales), like)
        grouped, _ = self.slices(signs)
        across = 2 - self.dim
        if grouped.shape[across] > 1:
            signs = centred_signs(grouped, [across]).reshape(signs.shape)
        return signs * self.spread(self.scales, signs)

    def forward(self, weight: Tensor) -> Tensor:
        """Binarize ``weight``."""
        if self.training:
            with torch.no_grad():
                self.scales.copy_(self._fresh(weight))
        centred = weight - self._centre(weight.detach())
        scales = self.spread(self.scales.clone(), weight)
        return _ScaledSign.apply(centred, scales, self.slice_size(weight))
