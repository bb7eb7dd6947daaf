"""Information entropy of binary values.

Shapes: shares are (..., levels).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["entropy"]


def entropy(shares: Tensor) -> Tensor:
    r"""Entropy in bits, :math:`-\sum_l p_l \log_2 p_l`, with :math:`0 \log 0 = 0`.

    With two levels it is BiDense, Eq. 2: 1 where both are as frequent, 0 where there is but one.

    Args:
        shares: Shares of the levels (..., levels), which sum to 1.

    Returns:
        Tensor (...) from 0 to the logarithm of the number of levels.

    Deviation: the paper writes the natural logarithm; here the unit is the bit.
    """
    return torch.special.entr(shares).sum(-1) / math.log(2)
