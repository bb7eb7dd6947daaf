"""Weight binarizers as data: the form that packed layers run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["WeightPlanes"]


@dataclass(frozen=True)
class WeightPlanes:
    r"""A binary weight as a sum of planes of signs, plus a constant.

    For slice o (an output channel), with the signs :math:`E_j \in \{-1, +1\}`:

    .. math::
        W_o = \sum_j f_{jo} E_{jo} + c_o

    Attributes:
        signs: E as bool, True is +1, (planes, *shape of the layer's weight).
        factors: f, (planes, slices), or (planes, 1) if all slices have the same.
        offset: c, (slices,); ``None`` is 0.

    All tensors are detached.
    """

    signs: Tensor
    factors: Tensor
    offset: Tensor | None = None
