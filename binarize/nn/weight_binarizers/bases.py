"""Several binary weights for one layer, combined by learned numbers: the common base class."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError
from binarize.nn.planes import WeightPlanes
from binarize.nn.weight_binarizers.base import WeightBinarizer
from binarize.nn.weight_binarizers.scaled_sign import ScaledSign

__all__ = ["Bases"]


class Bases(WeightBinarizer):
    r"""K branches, each a :class:`~binarize.nn.ScaledSign` with its own latent weight.

    The latent weights are stacked along dimension 0 of the layer's ``weight``. The branches are
    linear and read the same feature map, so their sum is one convolution with the combined weight,
    and K counts of bits. The first starts as the float weight, and each of the others as the
    residual of the branches before it: K copies of one weight would stay equal.

    Args:
        dim: See :class:`~binarize.nn.weight_binarizers.base.WeightBinarizer`.
        groups: As in that class.
        bases: K, 1 to 16.
        option: The name of K in rule files.

    Raises:
        BinarizeError: K is not 1 to 16.

    Attributes:
        mix: The learned numbers, (K,) or (K, slices).
    """

    has_planes = True
    mix: nn.Parameter

    def __init__(self, dim: int, groups: int, bases: int, option: str) -> None:
        super().__init__(dim, groups)
        if not isinstance(bases, int) or isinstance(bases, bool) or not 1 <= bases <= 16:
            raise BinarizeError(
                option, bases, "must be a whole number from 1 to 16", "give for example 2"
            )
        self.option = option
        self.bits = self.copies = bases
        self.single = ScaledSign(dim, groups)
        # Stacked along dimension 0, the branches are additional blocks or slices of it.
        self.stacked = ScaledSign(dim, groups * bases if dim == 1 else groups)

    @property
    def popcount_exact(self) -> bool:  # type: ignore[override]
        """Only with one branch; more branches take several counts."""
        return self.bits == 1

    def factors(self, branches: Tensor) -> Tensor:
        """Return each branch's factor, broadcasting to (K, *shape of the layer's weight)."""
        raise NotImplementedError

    def latent(self, weight: Tensor) -> Tensor:
        latents = [weight]
        for _ in range(self.bits - 1):
            latents.append(latents[-1] - self.single(latents[-1]))
        return torch.cat([latent.detach() for latent in latents])

    def branches(self, weight: Tensor) -> Tensor:
        """(K, *shape of the layer's weight)."""
        return weight.unflatten(0, (self.bits, -1))

    def scale(self, weight: Tensor) -> Tensor:
        """Return the scales of all branches, without the learned numbers: (K * slices,)."""
        return self.stacked.scale(weight)

    def spread(self, scale: Tensor, weight: Tensor) -> Tensor:
        return self.stacked.spread(scale, weight)

    def planes(self, bits: Tensor, scale: Tensor, like: Tensor) -> WeightPlanes:
        single = super().planes(bits, scale, like)
        mix = self.mix.detach().view(self.bits, -1).double()
        return replace(single, factors=mix * single.factors)

    def forward(self, weight: Tensor) -> Tensor:
        """Combine the branches; the shape of the layer's weight."""
        branches = self.branches(self.stacked(weight))
        return (self.factors(branches).to(weight.dtype) * branches).sum(0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.option}={self.bits}"
