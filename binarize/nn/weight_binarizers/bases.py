"""Group-Net's weights: a learned combination of several binary ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.errors import BinarizeError
from binarize.nn.weight_binarizers.base import WeightBinarizer
from binarize.nn.weight_binarizers.scaled_sign import ScaledSign

__all__ = ["BinaryBases"]


class BinaryBases(WeightBinarizer):
    r""":math:`\sum_i \lambda_i \overline{|W_{io}|} \operatorname{sign}(W_i)`, K binary weights.

    Zhuang et al., Structured Binary Neural Networks (Group-Net), Eqs. 4-5: the layer-wise
    decomposition, K branches of one layer that read the same binary map, combined by learned
    numbers. Each branch is a :class:`~binarize.nn.ScaledSign` with a latent weight of its own; they
    are stacked along dimension 0 of the layer's ``weight``. As the branches are linear, their sum
    is one convolution by the combined weight, and K counts of bits.

    Args:
        dim: See :class:`~binarize.nn.weight_binarizers.base.WeightBinarizer`.
        groups: See there.
        bases: K, 1 to 16.

    Initial values: lambda = 1 / K. The latent weights are the float weight, what its binary form
    leaves over, what the binary form of that leaves over, and so on: K copies of one weight would
    never part. Counted: K parameters of one bit per weight, K float ones per layer.

    Deviations: the branches share the norm behind them (in the source each has its own); the
    group-wise form, where whole blocks are branches, is no property of a layer and not built.

    Raises:
        BinarizeError: ``bases`` is not 1 to 16.
    """

    def __init__(self, dim: int = 0, groups: int = 1, *, bases: int = 5) -> None:
        super().__init__(dim, groups)
        if not isinstance(bases, int) or isinstance(bases, bool) or not 1 <= bases <= 16:
            raise BinarizeError(
                "bases", bases, "must be a whole number from 1 to 16", "give for example 5"
            )
        self.bits = self.copies = bases
        self.single = ScaledSign(dim, groups)
        # Stacked along dimension 0, the branches are further blocks or further slices of it.
        self.stacked = ScaledSign(dim, groups * bases if dim == 1 else groups)
        self.mix = nn.Parameter(torch.full((bases,), 1.0 / bases))

    @property
    def popcount_exact(self) -> bool:  # type: ignore[override]
        """Only with one branch; several take several counts."""
        return self.bits == 1

    def reset_parameters(self) -> None:
        """Set lambda = 1 / K."""
        nn.init.constant_(self.mix, 1.0 / self.bits)

    def latent(self, weight: Tensor) -> Tensor:
        latents = [weight]
        for _ in range(self.bits - 1):
            latents.append(latents[-1] - self.single(latents[-1]))
        return torch.cat([latent.detach() for latent in latents])

    def _branches(self, weight: Tensor) -> Tensor:
        """(K, *shape of the layer's weight)."""
        return weight.unflatten(0, (self.bits, -1))

    def scale(self, weight: Tensor) -> Tensor:
        """Of all branches, without lambda: (K * slices,)."""
        return self.stacked.scale(weight)

    def spread(self, scale: Tensor, weight: Tensor) -> Tensor:
        return self.stacked.spread(scale, weight)

    def forward(self, weight: Tensor) -> Tensor:
        """Combine the branches; the shape of the layer's weight."""
        branches = self._branches(self.stacked(weight))
        mix = self.mix.view(-1, *[1] * (branches.dim() - 1)).to(weight.dtype)
        return (mix * branches).sum(0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bases={self.bits}"
