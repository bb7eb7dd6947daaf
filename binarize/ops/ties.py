"""Values that lie on a threshold that follows their mean.

A channel that is constant over the positions, as a pooled branch that is spread over the map, is
its own mean. An interpolation leaves it constant up to some last bits, whose signs would be noise:
others in another batch, layout or precision. So thresholds that depend on a mean lie a little below
it, and all of such a channel is +1, everywhere: in training layers, kernels and exported networks.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["below_ties"]

# Share of a threshold's magnitude: 32 to 64 last bits in single precision. It is the same in double
# precision, so that a network says the same in both.
_MARGIN = 2.0**-18


def below_ties(threshold: Tensor) -> Tensor:
    """Move thresholds below what is equal to them up to rounding.

    Args:
        threshold: Thresholds that depend on means.

    Returns:
        :math:`t - 2^{-18} |t|`; the gradient is passed through.
    """
    # A power of two: the product is exact, and the difference is rounded once, as in the kernels.
    return threshold - threshold.detach().abs() * _MARGIN
