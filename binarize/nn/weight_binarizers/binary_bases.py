"""Group-Net's weights: a learned combination of several binary ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.nn.weight_binarizers.bases import Bases

__all__ = ["BinaryBases"]


class BinaryBases(Bases):
    r""":math:`\sum_i \lambda_i \overline{|W_{io}|} \operatorname{sign}(W_i)`, K binary weights.

    Zhuang et al., Structured Binary Neural Networks (Group-Net), Eqs. 4-5: the layer-wise
    decomposition, K branches of one layer that read the same binary feature map, combined by
    learned numbers. Each branch is a :class:`~binarize.nn.ScaledSign` with its own latent weight;
    they are stacked along dimension 0 of the layer's ``weight``. The branches are linear, so their
    sum is one convolution with the combined weight, and K counts of bits.

    Args:
        dim: See :class:`~binarize.nn.weight_binarizers.base.WeightBinarizer`.
        groups: As in that class.
        bases: K, 1 to 16.

    Initial values: lambda = 1 / K. The first latent weight is the float weight, and each of the
    others the residual of the branches before it: K copies of one weight would stay equal. Counted:
    K parameters of one bit per weight, K float ones per layer.

    Deviations: the branches share the norm after them (in the source, each has its own); the
    group-wise form, with whole blocks as branches, is not a property of a layer and not available.

    Raises:
        BinarizeError: ``bases`` is not 1 to 16.
    """

    def __init__(self, dim: int = 0, groups: int = 1, *, bases: int = 5) -> None:
        super().__init__(dim, groups, bases, "bases")
        self.mix = nn.Parameter(torch.full((bases,), 1.0 / bases))

    def reset_parameters(self) -> None:
        """Set lambda = 1 / K."""
        nn.init.constant_(self.mix, 1.0 / self.bits)

    def factors(self, branches: Tensor) -> Tensor:
        return self.mix.view(-1, *[1] * (branches.dim() - 1))
