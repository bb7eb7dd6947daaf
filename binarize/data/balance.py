"""Class weights for rare classes."""

from __future__ import annotations

import torch
from torch import Tensor

from binarize.errors import DataError

__all__ = ["balanced_weights"]


def balanced_weights(counts: Tensor, power: float = 0.5) -> Tensor:
    """Return one cross-entropy weight per class that counteracts class imbalance.

    w_c is proportional to f_c^(−power) with f_c the class frequency, and scaled so that the
    mean weight over all pixels is 1, which keeps the scale of the loss.

    Args:
        counts: Pixels of each class, as :meth:`~binarize.data.dense.DenseDataset.class_counts`
            returns them.
        power: 0 weights all pixels equally, 1 all classes equally, 0.5 is in between.

    Returns:
        float32 tensor, one weight per class; 1 for a class without pixels.

    Raises:
        DataError: There is no pixel at all, or ``power`` is not from 0 to 1.
    """
    if not 0 <= power <= 1:
        raise DataError("power", power, "must be from 0 to 1", "use 0.5")
    share = counts.double() / counts.sum()
    if not bool(share.isfinite().all()):
        raise DataError("counts", counts.tolist(), "contain no pixel", "use a set with labels")
    weights = torch.where(share > 0, share.clamp(min=1e-12) ** -power, 0)
    weights = weights / (weights * share).sum()
    return torch.where(share > 0, weights, 1).float()
