"""IR-Net's activations: a sign whose surrogate gradient sharpens during training."""

from __future__ import annotations

import torch
from torch import Tensor

from binarize.nn.activation_binarizers.base import ActivationBinarizer
from binarize.nn.threshold import ThresholdForm
from binarize.ops.straight_through import error_decay, hard_sign, straight_through

__all__ = ["AnnealedSign"]


class AnnealedSign(ActivationBinarizer):
    r""":math:`\operatorname{sign}(x)` with the error decay estimator (EDE).

    Qin et al., IR-Net, Eqs. 9-11. Surrogate gradient: :math:`k t (1 - \tanh^2(t x))`, see
    :func:`binarize.ops.straight_through.error_decay`. No parameters; the buffer ``progress`` holds
    the position in the schedule.

    Args:
        channels: C, at least 1.
        channel_dim: 1 for feature maps, -1 for channels-last tensors.

    Deviations: sign(0) is +1; t changes every step, not every epoch.
    """

    progress: Tensor

    def __init__(self, channels: int, *, channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim=channel_dim)
        self.register_buffer("progress", torch.zeros(()))

    def reset_parameters(self) -> None:
        self.progress.zero_()

    def set_progress(self, done: float) -> None:
        """Set the share of the training that is done, 0 to 1."""
        self.progress.fill_(done)

    def threshold_form(self) -> ThresholdForm:
        return ThresholdForm(b=torch.zeros(self.channels))

    def forward(self, x: Tensor) -> Tensor:
        """Binarize a feature map; same shape and dtype, values -1 and +1."""
        return straight_through(hard_sign(x), error_decay(x, self.progress))
