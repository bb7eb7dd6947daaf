"""BiDense's binarizer: threshold and scale depend on each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError
from binarize.nn.activation_binarizers.base import ActivationBinarizer
from binarize.nn.threshold import ThresholdForm
from binarize.ops.adaptive_sign import adaptive_sign
from binarize.ops.ties import below_ties

__all__ = ["DistributionAdaptiveBinarizer"]

SCALES = ("layer", "channel")


class DistributionAdaptiveBinarizer(ActivationBinarizer):
    r"""Distribution-adaptive binarizer (DAB), BiDense Eqs. 4-10.

    For every sample n and channel c, with means over the positions p of the feature map:

    .. math::
        \beta_{nc} = k_c \, \bar x_{nc} + b_c, \qquad x_s = x - \beta, \qquad
        \alpha = \exp\bigl(a (\overline{|x_s|} - 1)\bigr), \qquad
        B = \alpha \cdot \operatorname{sign}(x_s)

    Surrogate gradient: ``(2 - 2|x_s|)`` where ``|x_s| < 1``, else 0. Both means are detached, so
    gradients reach ``x`` only through the sign, and ``k``, ``b``, ``a`` directly.

    A value that equals its threshold up to rounding is +1, see :mod:`binarize.ops.ties`.

    ``scale="layer"`` follows the paper's text: one ``a``, and one mean of ``|x_s|`` over all
    elements of a sample. It is a common factor of the convolution's output, so XNOR-popcount is
    exact. ``scale="channel"`` is the released layer: ``a`` and the mean are per channel.

    Args:
        channels: C, at least 1.
        scale: ``"layer"`` or ``"channel"``.
        channel_dim: 1 for feature maps, -1 for channels-last tensors.

    Initial values: k = 1, b = 0 (the threshold starts at the channel's mean, where a sign carries
    most information), a = 0 (the scale starts at 1).

    Raises:
        BinarizeError: ``channels`` is below 1 or ``scale`` is unknown.
    """

    def __init__(self, channels: int, *, scale: str = "layer", channel_dim: int = 1) -> None:
        super().__init__(channels, channel_dim=channel_dim)
        if scale not in SCALES:
            raise BinarizeError("scale", scale, "no such scale", f"use one of {', '.join(SCALES)}")
        self.scale = scale
        self.k = nn.Parameter(torch.empty(channels))
        self.b = nn.Parameter(torch.empty(channels))
        self.a = nn.Parameter(torch.empty(1 if scale == "layer" else channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set k = 1, b = 0, a = 0."""
        nn.init.ones_(self.k)
        nn.init.zeros_(self.b)
        nn.init.zeros_(self.a)

    @property
    def popcount_exact(self) -> bool:
        """Whether the scale factors out of the channel sum, so that counting bits is exact."""
        return self.scale == "layer"

    @property
    def follows_mean(self) -> bool:
        """True, also with a scale per channel, which has no form."""
        return True

    def threshold_form(self) -> ThresholdForm | None:
        """Return the equivalent for packed layers; ``None`` with a scale per channel."""
        if self.scale != "layer":
            return None
        return ThresholdForm(
            b=self.b.detach(),
            k=self.k.detach(),
            scale="exponential",
            exponent=self.a.detach(),
        )

    def terms(self, x: Tensor) -> tuple[Tensor, Tensor, list[int], list[int]]:
        """Return the arguments of :func:`binarize.ops.adaptive_sign.adaptive_sign` besides ``x``.

        Args:
            x: As in :meth:`forward`.

        Returns:
            Threshold, exponent, dimensions of the positions, dimensions of the scale's mean.
        """
        positions = [d for d in range(1, x.dim()) if d != self.channel_dim % x.dim()]
        shape = [1] * x.dim()
        shape[self.channel_dim] = self.channels
        detached = x.detach()
        mean = self._mean(detached, positions) if positions else detached
        threshold = below_ties(self.k.view(shape) * mean + self.b.view(shape))
        if self.scale == "layer":
            return threshold, self.a, positions, list(range(1, x.dim()))
        return threshold, self.a.view(shape), positions, positions

    def _mean(self, x: Tensor, positions: list[int]) -> Tensor:
        if self.training or not x.is_cpu:
            wide = torch.promote_types(x.dtype, torch.float32)
            return x.mean(positions, keepdim=True, dtype=wide)
        # The last bit of a threshold decides signs: in double precision it depends neither on the
        # summation order nor on the memory layout, and equals that of packed layers.
        return x.mean(positions, keepdim=True, dtype=torch.float64).to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Binarize a feature map.

        Args:
            x: Floating-point feature map of at least two dimensions, samples in dimension 0.

        Returns:
            Tensor of the same shape and dtype: ``alpha * sign(x - beta)``.
        """
        threshold, exponent, positions, over = self.terms(x)
        return adaptive_sign(x, threshold, exponent, positions=positions, over=over)

    def extra_repr(self) -> str:
        return f"{self.channels}, scale={self.scale!r}"
