"""Ties between values and thresholds that depend on their mean.

A channel that is constant over the positions, such as a pooled branch broadcast over the feature
map, equals its own mean. An interpolation leaves it constant up to its last bits, whose signs would
be noise that changes with batch, layout and precision. So thresholds that depend on a mean lie
slightly below it, and such a channel is +1 throughout: in training, kernels and exported networks.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["below_ties"]

# Relative to a threshold's magnitude: 32 to 64 ulps in single precision. It is the same in double
# precision, so that a network gives the same results in both.
_MARGIN = 2.0**-18


def below_ties(threshold: Tensor) -> Tensor:
    """Move thresholds below values that are equal to them up to rounding.

    Args:
        threshold: Thresholds that depend on means.

    Returns:
        :math:`t - 2^{-18} |t|`; the gradient is passed through.
    """
    # A power of two: the product is exact, and the difference rounded once, as in the kernels.
    return threshold - threshold.detach().abs() * _MARGIN
