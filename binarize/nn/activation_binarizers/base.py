"""The base class of all activation binarizers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError
from binarize.nn.threshold import ThresholdForm

__all__ = ["ActivationBinarizer"]


class ActivationBinarizer(nn.Module):
    """Maps a float feature map to one with few levels; shape and dtype stay.

    Feature maps are (N, C, *spatial) with ``channel_dim=1``, or (N, *positions, C) with
    ``channel_dim=-1``. Trained values are parameters; values that follow a schedule or a statistic
    are buffers, so the ``state_dict`` holds all of them. A schedule has a method
    ``set_progress(done)``, which :class:`binarize.Trainer` calls with the share of the training
    that is done.

    Args:
        channels: C, at least 1.
        channel_dim: 1 for feature maps, -1 for channels-last tensors.

    Attributes:
        bits: Bits per value; a layer counts its operations once per pair of an activation bit and a
            weight bit.

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
        """Whether counting bits, times one factor per sample, gives the exact channel sum."""
        return True

    @property
    def follows_mean(self) -> bool:
        """Whether thresholds move with the mean of the input, which then may have one sign."""
        forms = self.threshold_forms()
        return bool(forms) and all(form.k is not None for form in forms)

    def threshold_form(self) -> ThresholdForm | None:
        """Return the binarizer as one form; ``None`` if it is none, or a sum of several."""
        return None

    def threshold_forms(self) -> tuple[ThresholdForm, ...]:
        """Return the forms whose sum packed layers carry out; empty if there are none."""
        form = self.threshold_form()
        return () if form is None else (form,)

    def level_index(self, values: Tensor) -> Tensor:
        """Return which of its ``2 ** bits`` levels each output value is, 0 the lowest.

        Args:
            values: The result of ``forward`` in eval mode, of any shape.

        Returns:
            Integers of that shape; with one bit, 1 is +1. The sign bit decides, even if the scale
            is 0.
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
        """Return the dimensions of ``x`` other than samples and channels."""
        return [d for d in range(1, x.dim()) if d != self.channel_dim % x.dim()]

    def extra_repr(self) -> str:
        return f"{self.channels}"
