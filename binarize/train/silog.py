"""The scale-invariant logarithmic loss."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["silog_loss"]


def silog_loss(error: Tensor, valid: Tensor, focus: float = 0.85) -> Tensor:
    """sqrt(mean(g²) − focus · mean(g)²) of log-depth errors g (Eigen et al. 2014, Eq. 4).

    The root and the variance focus 0.85 follow Lee et al. 2019 (BTS, Eq. 4). With focus 1 the loss
    ignores a common factor on all depths, with focus 0 it is the RMSE of log-depth.

    Args:
        error: g = log(prediction) − log(truth), any shape; ignored where not valid.
        valid: Boolean, same shape.
        focus: Between 0 and 1.

    Returns:
        Scalar; 0 when nothing is valid. Means are over all valid pixels of the batch.
    """
    error = torch.where(valid, error, 0)
    count = valid.sum().clamp(min=1)
    squared = error.square().sum() / count - focus * (error.sum() / count).square()
    # The root has no gradient at 0, the value of a batch without valid pixels.
    return squared.clamp(min=torch.finfo(error.dtype).tiny).sqrt()
