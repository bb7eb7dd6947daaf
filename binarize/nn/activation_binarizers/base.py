"""What all activation binarizers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError
from binarize.nn.threshold import ThresholdForm

__all__ = ["ActivationBinarizer"]


class ActivationBinarizer(nn.Module):
    """Float map in, map of few levels out; shape and dtype stay.

    Maps are (N, C, *spatial) with ``channel_dim=1``, or (N, *positions, C) with ``channel_dim=-1``.
    What training changes is a parameter, what a schedule or a statistic changes is a buffer, so
    that the ``state_dict`` has all of it; a schedule is driven by a method ``set_progress(done)``,
    which :class:`binarize.Trainer` calls with the share of the training that is done.

    Args:
        channels: C, at least 1.
        channel_dim: 1 for maps, -1 for channels-last tensors.

    Attributes:
        bits: Bits per value; a layer counts its operations once per pair of an activation's and a
            weight's bits.

    Raises:
        BinarizeError: ``channels`` is below 1.
    """

    bits: int = 1

    def __init__(self, channels: int, *, channel_dim: int = 1) -> None:
        super().__init__()
        if channels < 1:
            raise BinarizeError(
                "channels", channels, "a binarizer needs at least one channel", "give 1 or more"
            )
        self.channels = channels
        self.channel_dim = channel_dim

    @property
    def popcount_exact(self) -> bool:
        """Whether counting bits, times one factor per sample, gives a channel sum exactly."""
        return True

    def threshold_form(self) -> ThresholdForm | None:
        """What packed layers do in its place; ``None`` if no threshold form says it."""
        return None

    def level_index(self, values: Tensor) -> Tensor:
        """Tell which of its ``2 ** bits`` levels each value of its output is, 0 the lowest.

        Args:
            values: What ``forward`` returned in eval mode, of any shape.

        Returns:
            Integers of that shape; with one bit 1 stands for +1. The sign bit decides, so that a
            scale of 0 hides nothing.
        """
        return (~torch.signbit(values)).to(torch.uint8)

    def reset_parameters(self) -> None:
        """Set parameters and buffers to their initial values."""

    def along_channels(self, values: Tensor, x: Tensor) -> Tensor:
        """View values (C,) so that they broadcast along the channels of ``x``, in its dtype."""
        shape = [1] * x.dim()
        shape[self.channel_dim] = self.channels
        return values.view(shape).to(x.dtype)

    def positions(self, x: Tensor) -> list[int]:
        """The dimensions of ``x`` that are neither samples nor channels."""
        return [d for d in range(1, x.dim()) if d != self.channel_dim % x.dim()]

    def extra_repr(self) -> str:
        return f"{self.channels}"
