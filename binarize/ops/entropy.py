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

    With two levels it is BiDense, Eq. 2: 1 if both are equally frequent, 0 if only one occurs.

    Args:
        shares: Shares of the levels (..., levels), which sum to 1.

    Returns:
        Tensor (...) from 0 to the logarithm of the number of levels.

    Deviation: the paper uses the natural logarithm; here the unit is bits.
    """
    return torch.special.entr(shares).sum(-1) / math.log(2)
