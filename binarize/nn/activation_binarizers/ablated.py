"""The distribution-adaptive binarizer with parts removed or replaced: BiDense's ablations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError
from binarize.nn.activation_binarizers.base import ActivationBinarizer
from binarize.nn.threshold import ThresholdForm
from binarize.ops.sign import scaled_sign
from binarize.ops.ties import below_ties

__all__ = ["AblatedBinarizer"]

_WORDS = {
    "threshold": ("affine", "bias", "mean", "none"),
    "factor": ("adaptive", "learned", "magnitude", "none"),
    "scale": ("layer", "channel"),
}
_SMALLEST = 1e-5


class AblatedBinarizer(ActivationBinarizer):
    r""":math:`\alpha \operatorname{sign}(x_s)` with :math:`x_s = x - \beta`, part by part.

    BiDense, Table 4 and Section 4.3. With the first form of both options, it is the
    :class:`~binarize.nn.DistributionAdaptiveBinarizer`.

    ======================  =====================================  ===================
    ``threshold``           :math:`\beta`                          parameters
    ======================  =====================================  ===================
    ``"affine"``            :math:`k_c \bar x_{nc} + b_c`          k, b
    ``"bias"``              :math:`b_c` (ReActNet's)               b
    ``"mean"``              :math:`k_c \bar x_{nc}`                k
    ``"none"``              0                                      none
    ======================  =====================================  ===================

    ======================  =====================================  ===================
    ``factor``              :math:`\alpha`                         parameters
    ======================  =====================================  ===================
    ``"adaptive"``          :math:`\exp(a (\overline{|x_s|} - 1))` a
    ``"learned"``           :math:`\alpha` (BiT's), at least 1e-5  alpha
    ``"magnitude"``         :math:`\overline{|x_s|}`               none
    ``"none"``              1                                      none
    ======================  =====================================  ===================

    Surrogate gradient: ``2 - 2|x_s|`` where ``|x_s| < 1``, else 0. All means are detached.

    Args:
        channels: C, at least 1.
        threshold: See above.
        factor: See above.
        scale: ``"layer"`` (one a, alpha and mean of ``|x_s|`` per layer) or ``"channel"`` (one per
            channel, as in the released code; the factor then stays inside the channel sum).
        channel_dim: 1 for feature maps, -1 for channels-last tensors.

    Initial values: k = 1, b = 0, a = 0, alpha = 1. Counted: one float parameter per channel for k
    and b, and for a and alpha one per layer or channel.

    Raises:
        BinarizeError: ``channels`` is below 1 or an option is unknown.

    Deviation: sign(0) is +1.
    """

    def __init__(
        self,
        channels: int,
        *,
        threshold: str = "affine",
        factor: str = "adaptive",
        scale: str = "layer",
        channel_dim: int = 1,
    ) -> None:
        super().__init__(channels, channel_dim=channel_dim)
        given = {"threshold": threshold, "factor": factor, "scale": scale}
        for name, word in given.items():
            if word not in _WORDS[name]:
                raise BinarizeError(
                    name, word, f"no such {name}", f"use one of {', '.join(_WORDS[name])}"
                )
        self.threshold = threshold
        self.factor = factor
        self.scale = scale
        factors = 1 if scale == "layer" else channels
        self.k = _parameter(channels, 1.0) if threshold in ("affine", "mean") else None
        self.b = _parameter(channels, 0.0) if threshold in ("affine", "bias") else None
        self.a = _parameter(factors, 0.0) if factor == "adaptive" else None
        self.alpha = _parameter(factors, 1.0) if factor == "learned" else None

    def reset_parameters(self) -> None:
        for parameter, value in ((self.k, 1.0), (self.b, 0.0), (self.a, 0.0), (self.alpha, 1.0)):
            if parameter is not None:
                nn.init.constant_(parameter, value)

    @property
    def popcount_exact(self) -> bool:
        """Whether the factor can be taken out of the channel sum."""
        return self.scale == "layer" or self.factor == "none"

    @property
    def follows_mean(self) -> bool:
        """Whether the threshold has a part that is proportional to the mean."""
        return self.k is not None

    def threshold_form(self) -> ThresholdForm | None:
        if not self.popcount_exact:
            return None
        kinds = {"adaptive": "exponential", "magnitude": "magnitude"}
        return ThresholdForm(
            b=torch.zeros(self.channels) if self.b is None else self.b.detach(),
            k=None if self.k is None else self.k.detach(),
            scale=kinds.get(self.factor, "constant"),
            exponent=None if self.a is None else self.a.detach(),
            factor=None if self.alpha is None else self.alpha.detach().clamp(min=_SMALLEST),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Binarize a feature map; same shape and dtype."""
        over = self.positions(x)
        beta = torch.zeros((), dtype=x.dtype, device=x.device)
        if self.k is not None:
            mean = x.detach().mean(over, keepdim=True) if over else x.detach()
            beta = beta + self.along_channels(self.k, x) * mean
        if self.b is not None:
            beta = beta + self.along_channels(self.b, x)
        if self.k is not None:
            beta = below_ties(beta)
        # "0 - beta" is never -0.0, so the sign bit of the sum says whether x >= beta.
        shifted = x + (0.0 - beta)
        return scaled_sign(shifted, self._alpha(shifted))

    def _alpha(self, shifted: Tensor) -> Tensor:
        per_layer = self.scale == "layer"
        value: Tensor | None = self.alpha if self.alpha is not None else self.a
        if value is not None:
            shape = [1] * shifted.dim()
            value = value.view(shape) if per_layer else self.along_channels(value, shifted)
        if self.factor == "none":
            return shifted.new_ones([1] * shifted.dim())
        if self.factor == "learned" and value is not None:
            return value.to(shifted.dtype).clamp(min=_SMALLEST)
        over = list(range(1, shifted.dim())) if per_layer else self.positions(shifted)
        size = shifted.detach().abs()
        if over:
            wide = torch.promote_types(size.dtype, torch.float32)
            size = size.mean(over, keepdim=True, dtype=wide)
        if value is not None:
            size = torch.exp(value * (size - 1))
        return size.to(shifted.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, threshold={self.threshold!r}, factor={self.factor!r}, "
            f"scale={self.scale!r}"
        )


def _parameter(length: int, value: float) -> nn.Parameter:
    return nn.Parameter(torch.full((length,), value))
