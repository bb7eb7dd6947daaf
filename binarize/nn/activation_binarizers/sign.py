"""The bare sign: BNN, DoReFa-Net with one bit, Bi-Real Net."""

from __future__ import annotations

import torch
from torch import Tensor

from binarize.errors import BinarizeError
from binarize.nn.activation_binarizers.base import ActivationBinarizer
from binarize.nn.threshold import ThresholdForm
from binarize.ops.sign import SURROGATES, sign

__all__ = ["Sign"]


class Sign(ActivationBinarizer):
    r""":math:`\operatorname{sign}(x)`, without parameters.

    Surrogate gradient: ``"clip"`` is 1 where ``|x| <= 1``, else 0 (Hubara et al., Binarized Neural
    Networks, Eq. 4; also DoReFa-Net with one bit). ``"polynomial"`` is ``2 - 2|x|`` where
    ``|x| < 1``, else 0 (Liu et al., Bi-Real Net, Eq. 6).

    Args:
        channels: C, at least 1.
        surrogate: ``"clip"`` or ``"polynomial"``.
        channel_dim: 1 for feature maps, -1 for channels-last tensors.

    Raises:
        BinarizeError: ``channels`` is below 1 or ``surrogate`` is unknown.

    Deviation: sign(0) is +1. DoReFa-Net's 1-bit activations are {0, 1}; scaled to {-1, +1}, they
    differ by a constant that the following norm absorbs.
    """

    def __init__(self, channels: int, *, surrogate: str = "clip", channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim=channel_dim)
        if surrogate not in SURROGATES:
            raise BinarizeError(
                "surrogate",
                surrogate,
                "no such surrogate gradient",
                f"use one of {', '.join(SURROGATES)}",
            )
        self.surrogate = surrogate

    def threshold_form(self) -> ThresholdForm:
        return ThresholdForm(b=torch.zeros(self.channels))

    def forward(self, x: Tensor) -> Tensor:
        """Binarize a feature map; same shape and dtype, values -1 and +1."""
        return sign(x, self.surrogate)

    def extra_repr(self) -> str:
        return f"{self.channels}, surrogate={self.surrogate!r}"
