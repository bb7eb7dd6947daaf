"""Group-Net's weights: a learned combination of several binary ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.nn.weight_binarizers.bases import Bases

__all__ = ["BinaryBases"]


class BinaryBases(Bases):
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
        super().__init__(dim, groups, bases, "bases")
        self.mix = nn.Parameter(torch.full((bases,), 1.0 / bases))

    def reset_parameters(self) -> None:
        """Set lambda = 1 / K."""
        nn.init.constant_(self.mix, 1.0 / self.bits)

    def factors(self, branches: Tensor) -> Tensor:
        return self.mix.view(-1, *[1] * (branches.dim() - 1))
