"""CBNN's weights: binary cells, combined by a learned factor for each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binarize.nn.weight_binarizers.bases import Bases

__all__ = ["BinaryCells"]


class BinaryCells(Bases):
    r""":math:`\sum_i \lambda_{io} \overline{|W_{io}|} \operatorname{sign}(W_i)`, K binary cells.

    Zhou et al., Cellular Binary Neural Network, and the authors' published code: K parallel cells
    with lateral connections, :math:`y_i' = y_i + \sum_{j \ne i} w_{ij} \odot y_j` with a learned
    number per channel, whose outputs are added at the end. For one layer whose cells read the same
    binary feature map, the two steps are one sum, :math:`\sum_i (1 + \sum_{j \ne i} w_{ji}) \odot
    y_i`, and :math:`\lambda_i` is its factor. Surrogate gradient on each latent weight: 1 where
    ``|W| <= 1``, else 0, times lambda.

    Args:
        dim: See :class:`~binarize.nn.weight_binarizers.base.WeightBinarizer`.
        groups: As in that class.
        cells: K, 1 to 16.

    Initial values: lambda = 1. The first latent weight is the float weight, and each of the others
    the residual of the cells before it: K copies of one weight would stay equal. Counted: K
    parameters of one bit per weight, K float ones per slice.

    Deviations: the layer-wise form. In the source, a cell is a network: it reads the feature map of
    the cell before it and has its own thresholds, norms, shortcuts and activations, followed by the
    lateral connections; the cells meet at the network's end (some are concatenated there). Here,
    cells are weights of one layer and share everything else. The lateral factors start at 0 (in the
    source, at random below 0.001), the cells from one trained weight (there, each at random). There
    are no masks: secondary sources mention fixed binary ones, but the published code has none.

    Raises:
        BinarizeError: ``cells`` is not 1 to 16.
    """

    def __init__(self, dim: int = 0, groups: int = 1, *, cells: int = 2) -> None:
        super().__init__(dim, groups, cells, "cells")
        self.mix = nn.Parameter(torch.empty(cells, 0))

    def start(self, weight: Tensor) -> None:
        """Set lambda = 1 for all slices of the weight."""
        slices = self.scale(weight).numel() // self.bits
        self.mix = nn.Parameter(weight.new_ones(self.bits, slices))

    def factors(self, branches: Tensor) -> Tensor:
        return torch.stack([self.single.spread(mix, branches[0]) for mix in self.mix])
