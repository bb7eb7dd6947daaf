"""AdaBin's activations: two learned values instead of -1 and +1."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.nn.activation_binarizers.base import ActivationBinarizer
from binarize.nn.threshold import ThresholdForm
from binarize.ops.sign import sign

__all__ = ["AdaptiveSet"]


class AdaptiveSet(ActivationBinarizer):
    r""":math:`\alpha \operatorname{sign}((x - \beta) / \alpha) + \beta`, two learned numbers.

    Tu et al., AdaBin, Eqs. 11-13. Surrogate gradient of the sign: ``2 - 2|u|`` where ``|u| < 1``,
    else 0, with ``u = (x - beta) / alpha``; it reaches ``x``, alpha and beta by the chain rule, and
    the latter two directly as well.

    Args:
        channels: C, at least 1.
        channel_dim: 1 for feature maps, -1 for channels-last tensors.

    Initial values: alpha = 1, beta = 0. Counted: two float parameters per layer.

    Counting bits alone is not exact: packed layers add beta times the sum of the weights inside the
    feature map.

    Deviations: the released code returns alpha * (sign + beta); this is the paper's form.
    sign(0) is +1.
    """

    def __init__(self, channels: int, *, channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim=channel_dim)
        self.alpha = nn.Parameter(torch.ones(1))
        self.beta = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.alpha)
        nn.init.zeros_(self.beta)

    @property
    def popcount_exact(self) -> bool:
        """No: at a padded border, the constant part does not factor out of the sum."""
        return False

    def threshold_form(self) -> ThresholdForm:
        alpha, beta = self.alpha.detach(), self.beta.detach()
        return ThresholdForm(
            b=beta.expand(self.channels),
            flip=(alpha < 0).expand(self.channels),
            factor=alpha,
            offset=beta,
        )

    def level_index(self, values: Tensor) -> Tensor:
        """Return 1 for the larger of the two values, whatever alpha's sign."""
        return (values >= self.beta.to(values.dtype)).to(torch.uint8)

    def forward(self, x: Tensor) -> Tensor:
        """Binarize a feature map; same shape and dtype, values beta - alpha and beta + alpha."""
        alpha, beta = self.alpha.to(x.dtype), self.beta.to(x.dtype)
        return alpha * sign((x - beta) / alpha) + beta
