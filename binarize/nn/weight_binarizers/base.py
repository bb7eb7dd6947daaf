"""The base class of all weight binarizers: slices of a weight, and its storage."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from binarize.nn.planes import WeightPlanes
from binarize.ops.bits import pack_signs, unpack_bits, unpack_signs

__all__ = ["WeightBinarizer", "centred_signs"]


class WeightBinarizer(nn.Module):
    """Maps a latent float weight to one with few levels; same shape and dtype.

    Its numbers are per slice: per output channel, unless ``dim`` says otherwise. They are stored
    compactly: (groups, channels) flattened to one dimension.

    Trained values are parameters; values that follow a schedule or a statistic are buffers, so the
    ``state_dict`` holds all of them. A schedule has a method ``set_progress(done)``, which
    :class:`binarize.Trainer` calls with the share of the training that is done. Statistics that
    cannot be recovered from the signs are updated in training mode and kept in buffers; evaluation
    mode uses them unchanged.

    Args:
        dim: The weight's dimension that slices run along: 0 for convolution and linear weights
            (out, in, ...) to give one per output channel; for transposed weights
            (in, out / groups, ...) 1 gives one per output channel, 0 one per input channel.
        groups: Blocks of dimension 0 with their own slices, for transposed grouped
            convolutions, whose dimension 1 counts the output channels of one group only.

    Attributes:
        popcount_exact: Whether the effective weight is signs times one factor per slice, so that a
            sum over bits with one factor per output channel is exact.
        bits: Bits per weight of the layer; a layer counts its parameters and operations once per
            bit.
        copies: Latent weights per weight of the layer, stacked along dimension 0.
    """

    popcount_exact: bool = True
    bits: int = 1
    copies: int = 1

    @property
    def has_planes(self) -> bool:
        """Whether :meth:`planes` gives the effective weight; packed layers count bits only then."""
        return self.popcount_exact

    def __init__(self, dim: int = 0, groups: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.groups = groups

    # Defined by each method

    def latent(self, weight: Tensor) -> Tensor:
        """Return the initial latent weight for the weight of a float layer."""
        return weight

    def start(self, weight: Tensor) -> None:
        """Initialize the state (buffers, including their shapes) from a latent weight."""

    def scale(self, weight: Tensor) -> Tensor:
        """Return the factors of the signs, detached and compact."""
        raise NotImplementedError

    def offset(self, weight: Tensor) -> Tensor | None:
        """Return the constants to add to the products, detached and compact; ``None`` is 0."""
        return None

    def signs(self, weight: Tensor) -> Tensor:
        """Return the effective weight's signs, -1 and +1; with several bits, (bits, *shape)."""
        one = torch.ones((), dtype=weight.dtype, device=weight.device)
        return torch.where(weight.detach() < 0, -one, one)

    # Slices

    def slices(self, weight: Tensor) -> tuple[Tensor, list[int]]:
        """Return the weight as (groups, rows, ...), and the dimensions that a slice spans."""
        grouped = weight.unflatten(0, (self.groups, -1))
        return grouped, [d for d in range(1, grouped.dim()) if d != self.dim + 1]

    def slice_size(self, weight: Tensor) -> int:
        """Return the number of weights in a slice."""
        grouped, over = self.slices(weight)
        return math.prod(grouped.shape[d] for d in over)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of each slice, compact.

        It is computed as ``f + mean(values - f)`` with ``f`` the slice's first element: the same
        number, and exact to the last bit if all values of a slice are equal.
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
        """Return the stored weight: bits (uint8), and factors unless a buffer holds them."""
        return pack_signs(self.signs(weight)), self.stored_scale(weight)

    def stored_scale(self, weight: Tensor) -> Tensor:
        """Return the factors stored with the bits; empty if buffers hold them."""
        return self.scale(weight)

    def packed_sizes(self, weight: Tensor) -> tuple[int, int]:
        """Return the bytes of the bits and the number of factors; the weight may have no values."""
        meta = weight.detach().to("meta")
        count = meta.numel() * self.bits // self.copies
        return (count + 7) // 8, self.stored_scale(meta).numel()

    def unpack(self, bits: Tensor, scale: Tensor, like: Tensor) -> Tensor:
        """Return a latent weight whose effective weight is exactly the stored one.

        Args:
            bits: From :meth:`pack`.
            scale: From :meth:`pack`. The buffers must already be those of the stored weight.
            like: Gives shape, dtype and device.
        """
        signs = unpack_signs(bits, like.shape, like.dtype).to(like.device)
        return signs * self.spread(scale.to(signs), signs)

    def planes(self, bits: Tensor, scale: Tensor, like: Tensor) -> WeightPlanes:
        """Return the stored weight as planes of signs.

        Args:
            bits: As for :meth:`unpack`.
            scale: As for :meth:`unpack`.
            like: As for :meth:`unpack`; it need have no values.
        """
        shape = (self.bits, like.shape[0] // self.copies, *like.shape[1:])
        factors = scale if scale.numel() else self.scale(like)
        return WeightPlanes(
            unpack_bits(bits, shape),
            factors.detach().reshape(self.bits, -1),
            self.offset(like),
        )

    def extra_repr(self) -> str:
        return f"dim={self.dim}, groups={self.groups}"


def centred_signs(signs: Tensor, over: list[int]) -> Tensor:
    """Return values with the given signs and mean 0 over some dimensions, if both signs occur.

    With a share p of +1, they are 1 - p and -p; if all are +1, they are 0, which counts as +1.

    Args:
        signs: -1 and +1.
        over: Dimensions of the mean.
    """
    share = (signs > 0).to(signs.dtype).mean(over, keepdim=True)
    return torch.where(signs > 0, 1 - share, -share)
