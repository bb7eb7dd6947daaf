"""What all weight binarizers share: slices of a weight, and how it is stored."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from binarize.ops.bits import pack_signs, unpack_signs

__all__ = ["WeightBinarizer", "centred_signs"]


class WeightBinarizer(nn.Module):
    """Latent float weight in, weight of few levels out; same shape and dtype.

    What it knows of a weight is per slice: per output channel, unless ``dim`` says otherwise.
    Numbers per slice are compact: (groups, channels) flattened to one dimension.

    What training changes is a parameter; what a schedule or a statistic changes is a buffer, so
    that the ``state_dict`` has all of it. A schedule is driven by a method ``set_progress(done)``,
    which :class:`binarize.Trainer` calls with the share of the training that is done. Statistics
    that a file could not give back from the signs are taken in training mode and kept in buffers;
    in evaluation mode they are used as they are.

    Args:
        dim: The weight's dimension that slices run along: 0 for convolution and linear weights
            (out, in, ...) to give one per output channel; for transposed weights
            (in, out / groups, ...) 1 gives one per output channel, 0 one per input channel.
        groups: Blocks of dimension 0 with slices of their own, for transposed grouped
            convolutions, whose dimension 1 counts the output channels of one group only.

    Attributes:
        popcount_exact: Whether the weight in use is signs times one factor per slice, so that a
            sum over bits with one factor per output channel is exact.
        bits: Bits per weight of the layer; a layer counts its parameters and operations once per
            bit.
        copies: Latent weights per weight of the layer, stacked along dimension 0.
    """

    popcount_exact: bool = True
    bits: int = 1
    copies: int = 1

    def __init__(self, dim: int = 0, groups: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.groups = groups

    # What a method defines

    def latent(self, weight: Tensor) -> Tensor:
        """The latent weight to start from, given that of a float layer."""
        return weight

    def start(self, weight: Tensor) -> None:
        """Take the state (buffers, their shapes too) from a latent weight."""

    def scale(self, weight: Tensor) -> Tensor:
        """Detached factors of the signs, compact."""
        raise NotImplementedError

    def offset(self, weight: Tensor) -> Tensor | None:
        """Detached constants that are added to signs times factors, compact; ``None`` is 0."""
        return None

    def signs(self, weight: Tensor) -> Tensor:
        """Signs of the weight in use, -1 and +1; with several bits a plane for each in front."""
        one = torch.ones((), dtype=weight.dtype, device=weight.device)
        return torch.where(weight.detach() < 0, -one, one)

    # Slices

    def slices(self, weight: Tensor) -> tuple[Tensor, list[int]]:
        """The weight as (groups, rows, ...), and the dimensions that a slice spans in it."""
        grouped = weight.unflatten(0, (self.groups, -1))
        return grouped, [d for d in range(1, grouped.dim()) if d != self.dim + 1]

    def slice_size(self, weight: Tensor) -> int:
        """Number of weights in a slice."""
        grouped, over = self.slices(weight)
        return math.prod(grouped.shape[d] for d in over)

    def mean(self, values: Tensor) -> Tensor:
        """Mean of each slice, compact.

        It is taken as ``f + mean(values - f)`` with ``f`` the slice's first element: the same
        number, and exact to the last bit where all values of a slice agree.
        """
        grouped, over = self.slices(values)
        first = grouped
        for d in over:
            first = first.narrow(d, 0, 1)
        return (first + (grouped - first).mean(over, keepdim=True)).flatten()

    def spread(self, scale: Tensor, weight: Tensor) -> Tensor:
        """View compact numbers so that they broadcast to ``weight``."""
        rest = [1] * (weight.dim() - 2)
        if self.dim == 0:
            return scale.view(-1, 1, *rest)
        per_group = scale.view(self.groups, 1, -1).expand(-1, weight.shape[0] // self.groups, -1)
        return per_group.reshape(weight.shape[0], -1, *rest)

    # Storage

    def pack(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weight as it is stored: bits (uint8), and factors unless a buffer has them."""
        return pack_signs(self.signs(weight)), self.stored_scale(weight)

    def stored_scale(self, weight: Tensor) -> Tensor:
        """The factors that are stored with the bits; none where buffers say all."""
        return self.scale(weight)

    def packed_sizes(self, weight: Tensor) -> tuple[int, int]:
        """Bytes of the bits and number of the factors, of a weight that may have no values."""
        meta = weight.detach().to("meta")
        count = meta.numel() * self.bits // self.copies
        return (count + 7) // 8, self.stored_scale(meta).numel()

    def unpack(self, bits: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        """A latent weight that is in use exactly as the stored one was.

        Args:
            bits: From :meth:`pack`.
            scale: From :meth:`pack`. The buffers are those of the stored weight already.
            like: Tells shape, dtype and device.
        """
        signs = unpack_signs(bits, like.shape, like.dtype).to(like.device)
        return signs * self.spread(scale.to(signs), signs)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, groups={self.groups}"


def centred_signs(signs: Tensor, over: list[int]) -> Tensor:
    """Values of given signs whose mean over some dimensions is 0, where both signs occur.

    With a share p of +1 they are 1 - p and -p; where all are +1 they are 0, which counts as +1.

    Args:
        signs: -1 and +1.
        over: Dimensions of the mean.
    """
    share = (signs > 0).to(signs.dtype).mean(over, keepdim=True)
    return torch.where(signs > 0, 1 - share, -share)
