"""Several binary weights for one layer, combined by learned numbers: what methods share."""

from __future__ import annotations

import torch
from torch import Tensor

from binarize.errors import BinarizeError
from binarize.nn.weight_binarizers.base import WeightBinarizer
from binarize.nn.weight_binarizers.scaled_sign import ScaledSign

__all__ = ["Bases"]


class Bases(WeightBinarizer):
    r"""K branches, each a :class:`~binarize.nn.ScaledSign` with a latent weight of its own.

    The latent weights are stacked along dimension 0 of the layer's ``weight``. As the branches are
    linear and read the same map, their sum is one convolution by the combined weight, and K counts
    of bits. They start as the float weight, what its binary form leaves over, what the binary form
    of that leaves over, and so on: K copies of one weight would never part.

    Args:
        dim: See :class:`~binarize.nn.weight_binarizers.base.WeightBinarizer`.
        groups: See there.
        bases: K, 1 to 16.
        option: What a rule file calls K.

    Raises:
        BinarizeError: K is not 1 to 16.
    """

    def __init__(self, dim: int, groups: int, bases: int, option: str) -> None:
        super().__init__(dim, groups)
        if not isinstance(bases, int) or isinstance(bases, bool) or not 1 <= bases <= 16:
            raise BinarizeError(
                option, bases, "must be a whole number from 1 to 16", "give for example 2"
            )
        self.option = option
        self.bits = self.copies = bases
        self.single = ScaledSign(dim, groups)
        # Stacked along dimension 0, the branches are further blocks or further slices of it.
        self.stacked = ScaledSign(dim, groups * bases if dim == 1 else groups)

    @property
    def popcount_exact(self) -> bool:  # type: ignore[override]
        """Only with one branch; several take several counts."""
        return self.bits == 1

    def factors(self, branches: Tensor) -> Tensor:
        """What each branch is multiplied by, broadcasting to (K, *shape of the layer's weight)."""
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
        """Of all branches, without the learned numbers: (K * slices,)."""
        return self.stacked.scale(weight)

    def spread(self, scale: Tensor, weight: Tensor) -> Tensor:
        return self.stacked.spread(scale, weight)

    def forward(self, weight: Tensor) -> Tensor:
        """Combine the branches; the shape of the layer's weight."""
        branches = self.branches(self.stacked(weight))
        return (self.factors(branches).to(weight.dtype) * branches).sum(0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.option}={self.bits}"
